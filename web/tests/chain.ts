/**
 * Runs the signal path in Node.js, for the tests in Python that compare it:
 *
 *     node build/tests/chain.js MODEL < requests > answers
 *
 * A request is a line of JSON, {rate, channels, samples, chunk, strength, warmUp}, and then the samples: float32, one
 * channel after the other. The answer is a line of JSON, {latency, samples}, and the samples of the output.
 */
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { stdin, stdout } from "node:process";
import { Chain, type ChainOptions } from "../src/chain.js";
import { Model } from "../src/model.js";
import { join, lengthOf, part, type Signal } from "../src/signal.js";

interface Request extends ChainOptions {
  rate: number;
  channels: number;
  samples: number;
  chunk: number;
}

const model = await Model.open(readFileSync(process.argv[2]!));

async function answer({ rate, channels, samples, chunk, ...options }: Request, bytes: Buffer): Promise<void> {
  const all = new Float32Array(Uint8Array.from(bytes).buffer);
  const x: Signal = Array.from({ length: channels }, (_, c) => all.subarray(c * samples, (c + 1) * samples));
  const chain = new Chain(model, rate, channels, options);
  const parts: Signal[] = [];
  for (let start = 0; start < samples; start += chunk) parts.push(await chain.push(part(x, start, start + chunk)));
  const y = join(...parts, await chain.finish());
  const head = Buffer.from(`${JSON.stringify({ latency: chain.latency, samples: lengthOf(y) })}\n`);
  for (const bytes of [head, ...y.map((row) => Buffer.from(row.buffer))]) {
    if (!stdout.write(bytes)) await once(stdout, "drain");
  }
}

let waiting = Buffer.alloc(0);
let request: Request | null = null;
for await (const chunk of stdin) {
  waiting = Buffer.concat([waiting, chunk]);
  for (;;) {
    if (!request) {
      const end = waiting.indexOf("\n");
      if (end < 0) break;
      request = JSON.parse(waiting.subarray(0, end).toString()) as Request;
      waiting = waiting.subarray(end + 1);
    }
    const size = 4 * request.channels * request.samples;
    if (waiting.length < size) break;
    await answer(request, waiting.subarray(0, size));
    waiting = waiting.subarray(size);
    request = null;
  }
}

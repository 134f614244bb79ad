import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { loudness } from "../page/loudness.js";
import { storedRate } from "../src/decode.js";
import { DelayLine } from "../src/delay_line.js";
import { RealFFT } from "../src/fft.js";
import { Live } from "../src/live.js";
import type { Delivery } from "../src/messages.js";
import { readMetadata } from "../src/metadata.js";
import { Model } from "../src/model.js";
import { Resampler } from "../src/resample.js";
import type { Signal } from "../src/signal.js";
import { toWav } from "../src/wav.js";

const ramp = (from: number, length: number): Signal => [Float32Array.from({ length }, (_, i) => from + i)];
const read = (line: DelayLine, length: number): number[] => {
  const out = [new Float32Array(length)];
  line.read(out);
  return [...out[0]!];
};

test("a delay line returns what was written, after its delay", () => {
  const line = new DelayLine(1, 4);
  assert.deepEqual(read(line, 3), [0, 0, 0]);
  line.write(ramp(1, 3));
  assert.deepEqual(read(line, 3), [0, 1, 2]);
  line.write(ramp(4, 3));
  assert.deepEqual(read(line, 4), [3, 4, 5, 6]);
  assert.equal(line.underruns, 0);
});

test("what arrives too late is skipped, so that the delay stays the same", () => {
  const line = new DelayLine(1, 2);
  assert.deepEqual(read(line, 4), [0, 0, 0, 0]); // two of them are missing: 1 and 2
  assert.equal(line.underruns, 1);
  line.write(ramp(1, 3));
  line.write(ramp(4, 1));
  assert.deepEqual(read(line, 2), [3, 4]);
  line.write(2); // will never arrive
  assert.deepEqual(read(line, 2), [0, 0]);
  line.write(ramp(7, 2));
  assert.deepEqual(read(line, 2), [7, 8]);
  assert.equal(line.underruns, 1);
});

test("a gap makes the delay longer by half, and nothing is lost", () => {
  const line = new DelayLine(1, 4, 7);
  assert.deepEqual(read(line, 5), [0, 0, 0, 0, 0]); // one of them is missing
  assert.equal(line.delay, 6);
  line.write(ramp(1, 5));
  assert.deepEqual(read(line, 4), [0, 1, 2, 3]);
  assert.deepEqual(read(line, 4), [4, 5, 0, 0]); // at its longest: 6 comes too late by one
  assert.equal(line.delay, 7);
  line.write(ramp(6, 4));
  assert.deepEqual(read(line, 3), [7, 8, 9]);
  assert.equal(line.underruns, 2);
});

test("a mono line plays on every channel of the output", () => {
  const line = new DelayLine(1, 1);
  line.read([new Float32Array(1)]);
  line.write(ramp(1, 1));
  const out = [new Float32Array(1), new Float32Array(1)];
  line.read(out);
  assert.deepEqual(out.map((row) => row[0]), [1, 1]);
});

/** A chain of latency 0 that delays nothing, and counts. */
function counter(made: object[]): never {
  const chain = { latency: 0, strength: null, push: async (x: Signal) => x.map((row) => row.slice()) };
  made.push(chain);
  return chain as never;
}

async function live(chunks: Signal[]): Promise<{ delivered: Delivery[]; made: object[]; load: number[] }> {
  const [delivered, made, load]: [Delivery[], object[], number[]] = [[], [], []];
  const port = { onmessage: null, postMessage: (data: Delivery) => delivered.push(data) };
  new Live(() => counter(made), port as never, 1000, (value) => load.push(value));
  for (const data of chunks) (port.onmessage as unknown as (event: object) => void)({ data });
  while (!delivered.length) await new Promise((resolve) => setTimeout(resolve, 1));
  return { delivered, made, load };
}

test("live audio that waits goes through together, and its load is reported", async () => {
  const { delivered, load } = await live([ramp(0, 200), ramp(200, 300)]);
  assert.equal(delivered.length, 1);
  assert.deepEqual(delivered[0], ramp(0, 500));
  assert.equal(load.length, 1);
});

test("a device that is too far behind skips what waits, and begins again", async () => {
  const { delivered, made } = await live([ramp(0, 800), ramp(800, 800)]);
  assert.deepEqual(delivered, [1600]);
  assert.equal(made.length, 2);
});

test("live audio with NaN or infinite samples has silence there", async () => {
  const { delivered } = await live([[Float32Array.of(1, NaN, -Infinity, 2)]]);
  assert.deepEqual(delivered, [[Float32Array.of(1, 0, 0, 2)]]);
});

test("resampling keeps a tone, whatever the chunks", () => {
  const tone = Float32Array.from({ length: 4800 }, (_, i) => Math.sin((2 * Math.PI * 440 * i) / 48_000));
  const run = (chunk: number): number[] => {
    const resampler = new Resampler(48_000, 16_000, 1);
    const out: number[] = [];
    for (let i = 0; i < tone.length; i += chunk) out.push(...resampler.push([tone.subarray(i, i + chunk)])[0]!);
    return [...out, ...resampler.flush()[0]!];
  };
  const whole = run(4800);
  assert.equal(whole.length, 1600);
  assert.deepEqual(run(77), whole);
  for (let m = 100; m < 1500; m++) {
    assert.ok(Math.abs(whole[m]! - Math.sin((2 * Math.PI * 440 * m) / 16_000)) < 1e-3); // -60 dB: the pass band's ripple
  }
});

test("a rate that shares no divisor with the model's is refused with the remedy", () => {
  assert.throws(() => new Resampler(95_999, 16_000, 1), /use a sample rate that shares a larger divisor/);
});

test("the inverse transform returns the signal", () => {
  const fft = new RealFFT(64);
  const x = Float64Array.from({ length: 64 }, (_, i) => Math.sin(i * i));
  fft.inverse(fft.forward(x)).forEach((value, i) => assert.ok(Math.abs(value - x[i]!) < 1e-12));
});

test("a WAV file has the samples as 16 bits, clipped", async () => {
  const file = new DataView(await toWav([Float32Array.of(0.5, 2), Float32Array.of(-0.5, -2)], 16_000).arrayBuffer());
  const values = [0, 1, 2, 3].map((i) => file.getInt16(44 + 2 * i, true));
  assert.deepEqual(values, [16_384, -16_384, 32_767, -32_768]);
  assert.equal(storedRate(new Uint8Array(file.buffer)), 16_000);
});

test("the rate of a FLAC file is found, and none in other bytes", () => {
  assert.equal(storedRate(readFileSync("../examples/clips/helicopter_0db.noisy.flac")), 16_000);
  assert.equal(storedRate(new Uint8Array(100)), null);
  assert.equal(storedRate(new Uint8Array(0)), null);
});

test("a full-scale tone of 997 Hz has the loudness of the standard", () => {
  const tone = Float32Array.from({ length: 96_000 }, (_, i) => Math.sin((2 * Math.PI * 997 * i) / 48_000));
  assert.ok(Math.abs(loudness([tone], 48_000) + 3.01) < 0.01); // BS.1770-4, page 5
  assert.equal(loudness([new Float32Array(48_000)], 48_000), -Infinity);
});

for (const [what, bytes, expected] of [
  ["text", new TextEncoder().encode("this is no model, but it is long enough"), /not an ONNX file/],
  ["a truncated file", Uint8Array.of(0x3a, 0x80, 0x01, 1, 2), /not an ONNX file, or a damaged one/],
  ["a file without metadata", Uint8Array.of(0x08, 0x08), /the file has no metadata/],
] as const) {
  test(`${what} is refused as a model`, async () => {
    await assert.rejects(Model.open(bytes), expected);
  });
}

test("metadata is read from the file", () => {
  const entry = [0x0a, 1, 97, 0x12, 2, 98, 99]; // a: bc
  assert.deepEqual(readMetadata(Uint8Array.of(0x08, 10, 0x72, entry.length, ...entry)), new Map([["a", "bc"]]));
});

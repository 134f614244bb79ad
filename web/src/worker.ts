/** Runs the model, away from the page and from the audio thread. */

import { Chain } from "./chain.js";
import { Live } from "./live.js";
import type { EnhanceOptions, Reply, Request, Speed } from "./messages.js";
import { Model } from "./model.js";
import { join, lengthOf, part, silence, type Signal } from "./signal.js";
import { turn } from "./turn.js";

const PIECE_SECONDS = 1; // between two reports of progress
const READY = 0.5; // load at which a stream may start
const READY_SECONDS = 4; // longest wait for it
const CHUNK_SECONDS = 0.016; // of the warm-up and the rehearsal
const REHEARSAL_SECONDS = 0.5;

let model: Model | null = null;
let live: Live | null = null;
const cancelled = new Set<number>();

function reply(message: Reply, transfer: Transferable[] = []): void {
  self.postMessage(message, { transfer });
}

self.onmessage = ({ data: request }: MessageEvent<Request>) => {
  if (request.type === "strength") {
    live?.setStrength(request.strength);
  } else if (request.type === "cancel") {
    cancelled.add(request.id);
  } else {
    answer(request).catch((error: unknown) => {
      const message = error instanceof Error ? error.message : String(error);
      reply({ id: request.id, type: "failed", message, cancelled: cancelled.delete(request.id) });
    });
  }
};

async function answer(request: Exclude<Request, { type: "cancel" | "strength" }>): Promise<void> {
  const { id } = request;
  if (request.type === "open") {
    const file = typeof request.model === "string" ? await download(request.model) : request.model;
    model = await Model.open(file, request.wasm);
    reply({ id, type: "opened", info: model.info });
    return;
  }
  if (!model) throw new Error("the model is not open");
  if (request.type === "enhance") {
    const channels = await enhance(model, id, request.channels, request.sampleRate, request.options);
    reply({ id, type: "enhanced", channels }, channels.map((row) => row.buffer));
  } else if (request.type === "measure") {
    reply({ id, type: "measured", speed: await measure(model, request.seconds) });
  } else {
    const { sampleRate, channels, strength } = request;
    const chain = (): Chain => new Chain(model!, sampleRate, channels, { strength });
    await warmUp(chain(), sampleRate, channels);
    const lateness = request.rehearse ? await rehearse(chain(), sampleRate, channels) : 0;
    live = new Live(chain, request.port, sampleRate, (load) => reply({ type: "load", load }));
    reply({ id, type: "streaming", latency: live.latency, lateness });
  }
}

async function download(url: string): Promise<Uint8Array> {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status} ${response.statusText}`);
  return new Uint8Array(await response.arrayBuffer());
}

async function enhance(
  model: Model,
  id: number,
  x: Signal,
  sampleRate: number,
  { strength = null, warmUp = true }: EnhanceOptions,
): Promise<Signal> {
  const chain = new Chain(model, sampleRate, x.length, { strength, warmUp });
  const total = lengthOf(x);
  const piece = PIECE_SECONDS * sampleRate;
  const parts: Signal[] = [];
  for (let start = 0; start < total; start += piece) {
    parts.push(await chain.push(part(x, start, start + piece)));
    reply({ id, type: "progress", done: Math.min(start + piece, total) / sampleRate, total: total / sampleRate });
    await turn();
    if (cancelled.has(id)) throw new Error("cancelled");
  }
  parts.push(await chain.finish());
  return join(...parts);
}

/** Run until the browser has compiled everything well: the first hops take up to ten times longer. */
async function warmUp(chain: Chain, sampleRate: number, channels: number): Promise<void> {
  const chunk = noisy(channels, sampleRate);
  const started = performance.now();
  for (let load = 1; load > READY && performance.now() - started < 1000 * READY_SECONDS; ) {
    const before = performance.now();
    for (let i = 0; i < 10; i++) await chain.push(chunk);
    load = (performance.now() - before) / (10_000 * CHUNK_SECONDS);
    await turn();
  }
}

/** Process chunks at the pace of live audio. Returns the longest time from a chunk's instant to its output, in seconds. */
async function rehearse(chain: Chain, sampleRate: number, channels: number): Promise<number> {
  const chunk = noisy(channels, sampleRate);
  const started = performance.now();
  let longest = 0;
  for (let instant = 0; instant < REHEARSAL_SECONDS; instant += CHUNK_SECONDS) {
    const elapsed = (): number => (performance.now() - started) / 1000 - instant;
    if (elapsed() < 0) await new Promise((resolve) => setTimeout(resolve, -1000 * elapsed()));
    await chain.push(chunk);
    longest = Math.max(longest, elapsed());
  }
  return longest;
}

function noisy(channels: number, sampleRate: number): Signal {
  return silence(channels, Math.round(CHUNK_SECONDS * sampleRate)).map((row) => row.map(noise));
}

function noise(): number {
  return 0.2 * (Math.random() - 0.5);
}

async function measure(model: Model, seconds: number): Promise<Speed> {
  const { hop, sampleRate } = model.info;
  const sound = Float32Array.from({ length: Math.round(seconds * sampleRate) }, noise);
  await warmUp(new Chain(model, sampleRate, 1), sampleRate, 1);
  const whole = new Chain(model, sampleRate, 1);
  const started = performance.now();
  for (let at = 0; at < sound.length; at += sampleRate) await whole.push([sound.subarray(at, at + sampleRate)]);
  await whole.finish();
  const realTimeFactor = (performance.now() - started) / 1000 / seconds;

  const live = new Chain(model, sampleRate, 1);
  const times: number[] = [];
  for (let at = 0; at + hop <= sound.length; at += hop) {
    const before = performance.now();
    await live.push([sound.subarray(at, at + hop)]);
    times.push(performance.now() - before);
  }
  times.sort((a, b) => a - b);
  const quantile = (share: number): number => times[Math.floor(share * (times.length - 1))] ?? 0;
  return { realTimeFactor, hopMedian: quantile(0.5), hopP99: quantile(0.99), hop: (1000 * hop) / sampleRate };
}

import type { Advance, Model } from "./model.js";
import { Offset } from "./offset.js";
import { Resampler } from "./resample.js";
import { HighGain, Link, inStep, joinPairs, type Pair } from "./stereo.js";
import { join, lengthOf, part, silence, type Signal } from "./signal.js";

const WARM_UP_SECONDS = 1.5; // of a recording, to initialise the model's state
const LINK_SECONDS = 0.016; // hop of the spectra in which channels share a gain
const LOUDEST = 1e6; // the model's input is clipped there, so that squares fit into float32

export interface ChainOptions {
  /** Maximum attenuation in dB; 0 changes nothing, null sets no limit. */
  strength?: number | null;
  /** Process the first 1.5 s once before they count. Output then starts 1.5 s late, so not for live audio. */
  warmUp?: boolean;
}

/**
 * One signal of any rate and channel count through a model, chunk by chunk. The signal path of
 * `clearstate/tasks/chain.py`, which draws it: the model's correction is added to the original signal, and the band
 * above the model's rate follows the model's gain.
 */
export class Chain {
  /** The most later samples that the output of an input sample needs, for any chunk sizes. */
  readonly latency: number;
  private readonly runner: Levelled;
  private readonly link: Link | null;
  private readonly down: Resampler | null = null;
  private readonly up: Resampler | null = null;
  private readonly gain: HighGain | null = null;
  private dry: Signal; // input that waits for its output
  private low: Signal; // the same at the model's rate, if the rates differ
  private early: number; // samples to drop from the pairs, to align them with the input
  private received = 0; // samples, at the signal's rate
  private produced = 0;
  private wet: number;
  private wetBefore: number; // of the last output sample

  constructor(
    model: Model,
    sampleRate: number,
    private readonly channels: number,
    { strength = null, warmUp = false }: ChainOptions = {},
  ) {
    if (!Number.isInteger(sampleRate) || sampleRate < 1) {
      throw new RangeError(`sample rate ${sampleRate}: expected a whole number of Hz, such as 48000`);
    }
    if (channels < 1) throw new RangeError(`${channels} channels: expected at least 1`);
    this.wet = this.wetBefore = wetness(strength);
    const { sampleRate: modelRate, hop } = model.info;
    this.runner = new Levelled(model, channels, warmUp);
    this.link = channels > 1 ? new Link(channels, inStep(hop, Math.floor(LINK_SECONDS * modelRate))) : null;
    const grid = Math.max(hop, this.link?.hop ?? 0);
    const delay = model.info.latency + (this.link?.delay ?? 0);
    let latency = delay + grid - 1 + this.runner.warmUp;
    if (sampleRate !== modelRate) {
      this.down = new Resampler(sampleRate, modelRate, channels, true);
      this.up = new Resampler(modelRate, sampleRate, 2 * channels);
      this.gain = new HighGain(modelRate, grid, -delay);
      latency = Math.floor(((this.up.lookahead + latency) * this.down.down) / this.down.up) + this.down.lookahead;
    }
    this.latency = latency;
    this.early = delay;
    this.dry = silence(channels, 0);
    this.low = silence(channels, 0);
  }

  /** Set the maximum attenuation in dB. The next output changes gradually. */
  set strength(strength: number | null) {
    this.wet = wetness(strength);
  }

  /** The next samples; returns the output that they complete. */
  async push(x: Signal): Promise<Signal> {
    this.received += lengthOf(x);
    this.dry = join(this.dry, x);
    const clipped = x.map((row) => row.map((value) => Math.min(Math.max(value, -LOUDEST), LOUDEST)));
    return this.mix(this.pairs(await this.run(this.down ? this.down.push(clipped) : clipped)));
  }

  /** The remaining output; in total it is as long as the input. */
  async finish(): Promise<Signal> {
    const parts: Signal[] = [];
    if (this.down) parts.push(this.mix(this.pairs(await this.run(this.down.flush()))));
    parts.push(this.mix(this.pairs(await this.runner.finish())));
    if (this.link) parts.push(this.mix(this.aligned(this.link.finish())));
    if (this.up) {
      const rest = silence(this.channels, this.up.lookahead + 1);
      parts.push(this.mix({ noisy: rest, enhanced: rest }));
    }
    return join(...parts);
  }

  private async run(x: Signal): Promise<Pair> {
    if (this.down) this.low = join(this.low, x);
    return this.runner.push(x);
  }

  private pairs(pair: Pair): Pair {
    return this.aligned(this.link ? this.link.push(pair) : pair);
  }

  /** Drop the delay of the pairs. */
  private aligned(pair: Pair): Pair {
    this.gain?.push(pair);
    const early = Math.min(this.early, lengthOf(pair.noisy));
    this.early -= early;
    return { noisy: part(pair.noisy, early), enhanced: part(pair.enhanced, early) };
  }

  /** The output at the signal's rate from aligned pairs at the model's rate and the waiting input. */
  private mix(pair: Pair): Signal {
    const { channels, wet, wetBefore } = this;
    let change: Signal = pair.enhanced.map((row, c) => row.map((value, i) => value - pair.noisy[c]![i]!));
    let low: Signal = [];
    let gain: Float64Array | null = null;
    if (this.up && this.down && this.gain) {
      const length = lengthOf(change);
      const waiting = silence(channels, length); // with silence after the end
      waiting.forEach((row, c) => row.set(this.low[c]!.subarray(0, length)));
      this.low = join(part(this.low, length));
      const raised = this.up.push([...change, ...waiting]);
      change = raised.slice(0, channels);
      low = raised.slice(channels);
      const end = this.up.produced;
      gain = this.gain.at(end - lengthOf(change), end, this.down.up, this.down.down);
    }
    const count = Math.min(lengthOf(change), this.received - this.produced);
    this.produced += count;
    const out = silence(channels, count);
    out.forEach((row, c) => {
      const x = this.dry[c]!;
      for (let i = 0; i < count; i++) {
        let correction = change[c]![i]!;
        if (gain) correction += (gain[i]! - 1) * (x[i]! - low[c]![i]!);
        row[i] = x[i]! + (wetBefore + ((wet - wetBefore) * (i + 1)) / count) * correction;
      }
    });
    if (count) this.wetBefore = wet;
    this.dry = join(part(this.dry, count));
    return out;
  }
}

/** The model, whose input has no constant offset: samples in, pairs out. */
class Levelled {
  /** Samples that wait until the model has processed all of them once. */
  readonly warmUp: number;
  private readonly hop: number;
  private readonly latency: number;
  private readonly advance: Advance;
  private readonly offset: Offset;
  private cold: boolean;
  private held: Signal; // until there is enough to warm up
  private rest: Signal; // an incomplete hop
  private waiting: Signal; // input that waits for its output

  constructor(model: Model, private readonly channels: number, warmUp: boolean) {
    const { sampleRate, hop, latency } = model.info;
    this.hop = hop;
    this.latency = latency;
    this.advance = model.openStream(channels);
    this.offset = new Offset(channels, hop, sampleRate);
    this.cold = warmUp;
    this.warmUp = warmUp ? this.whole(Math.floor(WARM_UP_SECONDS * sampleRate)) : 0;
    this.held = silence(channels, 0);
    this.rest = silence(channels, 0);
    this.waiting = silence(channels, latency);
  }

  /** The next samples. */
  async push(x: Signal): Promise<Pair> {
    if (this.cold) {
      this.held = join(this.held, x);
      if (lengthOf(this.held) < this.warmUp) return this.feed(silence(this.channels, 0));
      x = await this.begin();
    }
    return this.feed(this.offset.push(x));
  }

  /** The rest, as if silence followed. */
  async finish(): Promise<Pair> {
    const x = this.cold ? await this.begin() : this.held;
    const last = await this.feed(this.offset.push(x, true));
    return joinPairs(last, await this.feed(silence(this.channels, this.latency + this.hop - 1)));
  }

  /** What waited, after the model has processed its whole hops for the sake of the state alone. */
  private async begin(): Promise<Signal> {
    const held = this.held;
    this.held = silence(this.channels, 0);
    this.cold = false;
    await this.feed(this.offset.push(part(held, 0, Math.min(this.warmUp, this.whole(lengthOf(held))))));
    return held;
  }

  private async feed(x: Signal): Promise<Pair> {
    const rest = join(this.rest, x);
    const whole = this.whole(lengthOf(rest));
    this.rest = join(part(rest, whole));
    if (!whole) return { noisy: silence(this.channels, 0), enhanced: silence(this.channels, 0) };
    const ready = join(part(rest, 0, whole));
    const waiting = join(this.waiting, ready);
    this.waiting = join(part(waiting, whole));
    return { noisy: part(waiting, 0, whole), enhanced: await this.advance(ready) };
  }

  private whole(length: number): number {
    return Math.floor(length / this.hop) * this.hop;
  }
}

function wetness(strength: number | null): number {
  if (strength === null) return 1;
  if (!(strength >= 0)) {
    throw new RangeError(`strength ${strength}: expected decibels of attenuation, 0 (no change) or more, such as 12`);
  }
  return 1 - 10 ** (-strength / 20);
}

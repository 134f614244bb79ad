import { join, lengthOf, part, silence, type Signal } from "./signal.js";

const ZEROS = 48; // zero crossings of the sinc on each side: 3 ms at 16 kHz
const STOP_BAND_DB = 80;
const MAX_TABLE = 8_000_000; // entries (32 MB); only large coprime rates come near it

/**
 * Resample chunk by chunk, with a latency of 3 ms at the lower rate. The same filter as
 * `clearstate/audio/resample.py`, which describes it. The result does not depend on the chunks.
 */
export class Resampler {
  readonly up: number;
  readonly down: number;
  /** Input samples after an output's instant that the output needs. */
  readonly lookahead: number;
  produced = 0; // output samples
  private received = 0; // input samples
  private readonly table: Float32Array[];
  private held: Signal;
  private heldFrom: number; // input index of the first buffered sample

  constructor(rateIn: number, rateOut: number, private readonly channels: number, fold = false) {
    const common = greatestCommonDivisor(rateIn, rateOut);
    this.up = rateOut / common;
    this.down = rateIn / common;
    this.table = filterTable(this.up, this.down, fold);
    this.lookahead = this.table[0]!.length / 2;
    this.held = silence(channels, this.lookahead - 1);
    this.heldFrom = 1 - this.lookahead;
  }

  /** The next samples; returns the outputs that they complete. */
  push(x: Signal): Signal {
    this.received += lengthOf(x);
    const last = this.received - 1 - this.lookahead; // output m needs floor(m down / up) <= last
    return this.run(x, Math.max(0, Math.ceil(((last + 1) * this.up) / this.down)));
  }

  /** The remaining output, as if silence followed. */
  flush(): Signal {
    return this.run(silence(this.channels, this.lookahead), Math.ceil((this.received * this.up) / this.down));
  }

  private run(x: Signal, until: number): Signal {
    const { up, down, table, heldFrom } = this;
    const held = join(this.held, x);
    const y = silence(this.channels, Math.max(0, until - this.produced));
    const start = this.produced * down;
    held.forEach((row, c) => {
      const out = y[c]!;
      let first = Math.floor(start / up) - this.lookahead + 1 - heldFrom;
      let phase = start % up;
      for (let m = 0; m < out.length; m++) {
        const taps = table[phase]!;
        let total = 0;
        for (let j = 0; j < taps.length; j++) total += taps[j]! * row[first + j]!;
        out[m] = total;
        phase += down;
        first += Math.floor(phase / up);
        phase %= up;
      }
    });
    this.produced += lengthOf(y);
    const oldest = Math.floor((this.produced * down) / up) - this.lookahead + 1; // what the next output needs
    this.held = join(part(held, oldest - heldFrom));
    this.heldFrom = oldest;
    return y;
  }
}

function filterTable(up: number, down: number, fold: boolean): Float32Array[] {
  const half = Math.ceil(ZEROS * Math.max(1, down / up));
  if (up * 2 * half > MAX_TABLE) {
    throw new RangeError(
      `cannot convert by the ratio ${up}/${down}: the filter would need ${up} phases; ` +
        "use a sample rate that shares a larger divisor with the other one (such as 44100 or 48000)",
    );
  }
  const lower = Math.min(1, up / down); // the lower rate, in units of the input rate
  const beta = 0.1102 * (STOP_BAND_DB - 8.7);
  const transition = (STOP_BAND_DB - 7.95) / 14.36 / (2 * ZEROS); // Kaiser's length formula
  const cutoff = lower * (fold ? 1 : 1 - transition);
  return Array.from({ length: up }, (_, phase) => {
    const values = Float64Array.from({ length: 2 * half }, (_, j) => {
      const offset = j + 1 - half - phase / up; // input sample minus output instant
      const inside = 1 - (offset / half) ** 2;
      return inside > 0 ? bessel(beta * Math.sqrt(inside)) * sinc(cutoff * offset) : 0;
    });
    const sum = values.reduce((total, value) => total + value, 0); // every row passes a constant exactly
    return Float32Array.from(values, (value) => value / sum);
  });
}

function sinc(x: number): number {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

/** The modified Bessel function of order 0, by its power series. */
function bessel(x: number): number {
  let term = 1;
  let sum = 1;
  for (let k = 1; term > 1e-17 * sum; k++) {
    term *= (x / (2 * k)) ** 2;
    sum += term;
  }
  return sum;
}

function greatestCommonDivisor(a: number, b: number): number {
  return b === 0 ? a : greatestCommonDivisor(b, a % b);
}

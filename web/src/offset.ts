import { join, lengthOf, part, silence, type Signal } from "./signal.js";

const OFFSET_HZ = 2;
const OFFSET_SHARE = [0.04, 0.15] as const; // of the power: less is chance, more is certainly an offset
const FLAT = 1e-9; // variance over power below which a hop may consist of equal samples
const SILENT = 1e-20; // power of a hop that is digital silence

/** What is known about the offset of one channel. */
interface Means {
  hops: number;
  first: number; // low-pass
  second: number; // low-pass of the first
  power: number;
  now: number; // the offset that is subtracted
}

/** Remove a constant offset from the input of the model. The same arithmetic as `clearstate/audio/offset.py`. */
export class Offset {
  private readonly least: number;
  private readonly means: Means[];
  private rest: Signal; // an incomplete hop

  constructor(channels: number, private readonly hop: number, rate: number) {
    this.least = 1 - Math.exp((-2 * Math.PI * OFFSET_HZ * hop) / rate);
    this.means = Array.from({ length: channels }, () => ({ hops: 0, first: 0, second: 0, power: 0, now: 0 }));
    this.rest = silence(channels, 0);
  }

  /** The next samples without the offset: whole hops; with `last` also the incomplete one. */
  push(x: Signal, last = false): Signal {
    const y = join(this.rest, x); // a copy, which is changed below
    const whole = Math.floor(lengthOf(y) / this.hop) * this.hop;
    y.forEach((row, c) => {
      for (let start = 0; start < whole; start += this.hop) {
        this.level(row.subarray(start, start + this.hop), this.means[c]!);
      }
      if (last) for (let i = whole; i < row.length; i++) row[i]! -= this.means[c]!.now;
    });
    this.rest = last ? silence(y.length, 0) : join(part(y, whole));
    return last ? y : part(y, 0, whole);
  }

  private level(x: Float32Array, means: Means): void {
    let total = 0;
    let energy = 0;
    for (const value of x) {
      total += value;
      energy += value * value;
    }
    const mean = total / this.hop;
    const power = energy / this.hop;
    if (power - mean * mean <= FLAT * power && x.every((value) => value === x[0])) {
      Object.assign(means, { first: mean, second: mean, now: mean });
      x.fill(0);
      return;
    }
    const begins = means.hops === 0;
    const now = this.follow(means, mean, power);
    const before = begins ? now : means.now;
    means.now = now;
    if (!now && !before) return;
    for (let i = 0; i < x.length; i++) x[i]! -= before + ((now - before) * (i + 1)) / this.hop;
  }

  /** The offset to subtract at the end of a hop with this mean and power. */
  private follow(means: Means, mean: number, power: number): number {
    const share = Math.max(1 / (means.hops + 1), this.least);
    means.hops += 1;
    means.first += share * (mean - means.first);
    means.second += share * (means.first - means.second);
    means.power += share * (power - means.power);
    const sure =
      (means.second ** 2 / (means.power + SILENT) - OFFSET_SHARE[0]) / (OFFSET_SHARE[1] - OFFSET_SHARE[0]);
    return means.second * Math.min(1, Math.max(0, sure));
  }
}

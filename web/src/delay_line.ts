import type { Delivery } from "./messages.js";
import type { Signal } from "./signal.js";

/**
 * Output that arrives irregularly and is read regularly: it starts with `delay` samples of silence. Where it is not
 * there in time, a gap of silence makes the delay longer by half, so that nothing is lost and the next gap is less
 * likely. At the delay `most`, late output is skipped instead.
 */
export class DelayLine {
  /** Reads that found too little. */
  underruns = 0;
  /** Samples by which the output is late. */
  delay: number;
  private readonly ring: Signal;
  private filled: number; // samples that can be read; negative: samples that arrive too late
  private readAt = 0;

  constructor(channels: number, delay: number, private readonly most = delay) {
    this.ring = Array.from({ length: channels }, () => new Float32Array(most));
    this.filled = this.delay = delay;
  }

  /** The next samples of the signal. There are never more than have been read. */
  write(delivery: Delivery): void {
    const length = typeof delivery === "number" ? delivery : (delivery[0]?.length ?? 0);
    const late = Math.min(length, Math.max(0, -this.filled));
    this.ring.forEach((row, c) => {
      for (let i = late; i < length; i++) {
        row[(this.readAt + this.filled + i) % this.most] = typeof delivery === "number" ? 0 : delivery[c]![i]!;
      }
    });
    this.filled += length;
  }

  /** Fill `out` with the next samples. Returns how many of them were there. */
  read(out: Signal): number {
    const length = out[0]?.length ?? 0;
    const ready = Math.min(length, Math.max(0, this.filled));
    out.forEach((row, c) => {
      const from = this.ring[Math.min(c, this.ring.length - 1)]!;
      for (let i = 0; i < ready; i++) row[i] = from[(this.readAt + i) % this.most]!;
      row.fill(0, ready);
    });
    this.readAt = (this.readAt + length) % this.most;
    this.filled -= length;
    if (ready < length) this.lengthen();
    return ready;
  }

  private lengthen(): void {
    this.underruns += 1;
    const gap = Math.min(Math.ceil(this.delay / 2), this.most - this.delay);
    this.delay += gap;
    this.filled += gap;
    for (const row of this.ring) row.fill(0); // all of it has been read
  }
}

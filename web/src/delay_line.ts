import type { Delivery } from "./messages.js";
import type { Signal } from "./signal.js";

/**
 * Output that arrives irregularly and is read regularly, with a constant delay: it starts with `delay` samples of
 * silence. What is not there in time is silence, and is skipped when it arrives.
 */
export class DelayLine {
  /** Reads that found too little. */
  underruns = 0;
  private readonly ring: Signal;
  private filled: number; // samples that can be read; negative: samples that arrive too late
  private readAt = 0;

  constructor(channels: number, private readonly delay: number) {
    this.ring = Array.from({ length: channels }, () => new Float32Array(delay));
    this.filled = delay;
  }

  /** The next samples of the signal. There are never more than have been read. */
  write(delivery: Delivery): void {
    const length = typeof delivery === "number" ? delivery : (delivery[0]?.length ?? 0);
    const late = Math.min(length, Math.max(0, -this.filled));
    this.ring.forEach((row, c) => {
      for (let i = late; i < length; i++) {
        row[(this.readAt + this.filled + i) % this.delay] = typeof delivery === "number" ? 0 : delivery[c]![i]!;
      }
    });
    this.filled += length;
  }

  /** Fill `out` with the next samples. */
  read(out: Signal): void {
    const length = out[0]?.length ?? 0;
    const ready = Math.min(length, Math.max(0, this.filled));
    out.forEach((row, c) => {
      const from = this.ring[Math.min(c, this.ring.length - 1)]!;
      for (let i = 0; i < ready; i++) row[i] = from[(this.readAt + i) % this.delay]!;
      row.fill(0, ready);
    });
    this.readAt = (this.readAt + length) % this.delay;
    this.filled -= length;
    if (ready < length) this.underruns += 1;
  }
}

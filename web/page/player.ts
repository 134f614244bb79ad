import type { Signal } from "../src/index.js";
import { loudness } from "./loudness.js";

const SWITCH_SECONDS = 0.015; // of the cross-fade between before and after

/** Plays a recording before or after, at equal loudness, with one position for both. */
export class Player {
  playing = false;
  onchange: () => void = () => {};
  private readonly context = new AudioContext();
  private readonly dry = this.context.createGain();
  private readonly wet = this.context.createGain();
  private sources: AudioBufferSourceNode[] = [];
  private noisy: AudioBuffer | null = null;
  private enhanced: AudioBuffer | null = null;
  private startedAt = 0; // time of the context at which position 0 would have played
  private stoppedAt = 0; // position while it does not play
  private after = true;
  private share = 1; // of the enhanced signal in "after"
  private levels = { before: 1, after: 1 };

  constructor() {
    for (const gain of [this.dry, this.wet]) gain.connect(this.context.destination);
  }

  get duration(): number {
    return this.noisy?.duration ?? 0;
  }

  get position(): number {
    return Math.min(this.playing ? this.context.currentTime - this.startedAt : this.stoppedAt, this.duration);
  }

  load(noisy: Signal, enhanced: Signal, rate: number): void {
    this.stop();
    this.noisy = this.buffer(noisy, rate);
    this.enhanced = this.buffer(enhanced, rate);
    this.stoppedAt = 0;
  }

  async play(): Promise<void> {
    if (!this.noisy || !this.enhanced || this.playing) return;
    if (this.position >= this.duration) this.stoppedAt = 0;
    await this.context.resume();
    this.playing = true;
    const start = this.context.currentTime + 0.02;
    this.startedAt = start - this.stoppedAt;
    this.sources = [this.noisy, this.enhanced].map((buffer, i) => {
      const source = this.context.createBufferSource();
      source.buffer = buffer;
      source.connect(i ? this.wet : this.dry);
      source.start(start, this.stoppedAt);
      return source;
    });
    this.sources[0]!.onended = () => {
      this.stop();
      this.onchange();
    };
    this.balance(0);
    this.onchange();
  }

  stop(): void {
    if (!this.playing) return;
    this.stoppedAt = this.position;
    this.playing = false;
    for (const source of this.sources) {
      source.onended = null;
      source.stop();
    }
    this.onchange();
  }

  async seek(position: number): Promise<void> {
    const playing = this.playing;
    this.stop();
    this.stoppedAt = position;
    if (playing) await this.play();
    this.onchange();
  }

  /** Choose what is heard. */
  select(after: boolean): void {
    this.after = after;
    this.balance(SWITCH_SECONDS);
  }

  /** @param share of the enhanced signal in "after"; the rest is the original. */
  setShare(share: number): void {
    this.share = share;
    this.balance(SWITCH_SECONDS);
  }

  /** Attenuate the louder one of both, so that the ear compares noise and not level. */
  match(before: Signal, after: Signal, rate: number): void {
    const difference = loudness(after, rate) - loudness(before, rate);
    const gain = Number.isFinite(difference) ? 10 ** (-Math.abs(difference) / 20) : 1;
    this.levels = difference > 0 ? { before: 1, after: gain } : { before: gain, after: 1 };
    this.balance(SWITCH_SECONDS);
  }

  private balance(seconds: number): void {
    const share = this.after ? this.share : 0;
    const level = this.after ? this.levels.after : this.levels.before;
    const now = this.context.currentTime;
    for (const [gain, value] of [[this.dry.gain, level * (1 - share)], [this.wet.gain, level * share]] as const) {
      if (seconds) gain.setTargetAtTime(value, now, seconds / 3);
      else gain.setValueAtTime(value, now);
    }
  }

  private buffer(signal: Signal, rate: number): AudioBuffer {
    const buffer = new AudioBuffer({ length: signal[0]!.length, numberOfChannels: signal.length, sampleRate: rate });
    signal.forEach((row, c) => buffer.copyToChannel(row as Float32Array<ArrayBuffer>, c));
    return buffer;
  }
}

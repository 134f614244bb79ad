import type { EnhanceOptions, Speed } from "./messages.js";
import type { ModelInfo } from "./model.js";
import { decode } from "./decode.js";
import { Remote, type AssetOptions } from "./remote.js";
import type { Signal } from "./signal.js";

export interface RunOptions extends EnhanceOptions {
  /** Called about once per second of audio. */
  onProgress?: (secondsDone: number, secondsTotal: number) => void;
  /** Aborting it stops the work; the promise is rejected with its reason. */
  signal?: AbortSignal;
}

/** Sound of a file before and after, at the sample rate of the file. */
export interface EnhancedFile {
  noisy: Signal;
  enhanced: Signal;
  sampleRate: number;
}

/** Enhances recordings in a worker. */
export class Enhancer {
  /** @internal */
  constructor(private readonly remote: Remote) {}

  /** What the model file says about itself. */
  get model(): ModelInfo {
    return this.remote.info;
  }

  /**
   * Enhance a signal in memory. The result has its length and is aligned with it.
   *
   * @param signal one array per channel, or one array of samples; full scale 1. All channels share one gain.
   * @param sampleRate of the signal, in Hz; any
   */
  async enhance(signal: Float32Array, sampleRate: number, options?: RunOptions): Promise<Float32Array>;
  async enhance(signal: Signal, sampleRate: number, options?: RunOptions): Promise<Signal>;
  async enhance(
    signal: Float32Array | Signal,
    sampleRate: number,
    { onProgress, signal: abort, ...options }: RunOptions = {},
  ): Promise<Float32Array | Signal> {
    const channels = signal instanceof Float32Array ? [signal] : signal;
    check(channels);
    const question = { type: "enhance", channels, sampleRate, options } as const;
    const reply = await this.remote.ask(question, { progress: onProgress, signal: abort });
    return signal instanceof Float32Array ? reply.channels[0]! : reply.channels;
  }

  /** Enhance an audio file of any format that the browser can decode. */
  async enhanceFile(file: Blob, options?: RunOptions): Promise<EnhancedFile> {
    const { channels: noisy, sampleRate } = await decode(file);
    return { noisy, enhanced: await this.enhance(noisy, sampleRate, options), sampleRate };
  }

  /** Measure how fast the model runs on this device, with `seconds` of noise. */
  async measure(seconds = 5): Promise<Speed> {
    return (await this.remote.ask({ type: "measure", seconds })).speed;
  }

  /** Stop the worker and free its memory. */
  close(): void {
    this.remote.close();
  }
}

/** Load the model and return an object that enhances recordings. */
export async function createEnhancer(options: AssetOptions = {}): Promise<Enhancer> {
  return new Enhancer(await Remote.start(options));
}

function check(channels: Signal): void {
  const lengths = new Set(channels.map((row) => row.length));
  if (lengths.size !== 1 || lengths.has(0)) {
    throw new RangeError(`channels of ${[...lengths].join(", ") || "no"} samples: expected the same number, at least 1`);
  }
  channels.forEach((row, c) => {
    const bad = row.findIndex((value) => !Number.isFinite(value));
    if (bad >= 0) throw new RangeError(`sample ${bad} of channel ${c} is ${row[bad]}: expected a number`);
  });
}

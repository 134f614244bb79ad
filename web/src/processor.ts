/** The audio thread: sends the input to the worker, and plays what the worker has returned. */

import { DelayLine } from "./delay_line.js";
import type { Delivery } from "./messages.js";
import { PROCESSOR, type Command, type Notice, type ProcessorOptions } from "./processor_options.js";
import type { Signal } from "./signal.js";

// What TypeScript's library does not declare about the scope of an audio worklet.
declare class AudioWorkletProcessor {
  readonly port: MessagePort;
}
declare function registerProcessor(name: string, processor: unknown): void;
declare const currentFrame: number;

class EnhancerProcessor extends AudioWorkletProcessor {
  private readonly line: DelayLine;
  private readonly channels: number;
  private readonly length: number;
  private worker: MessagePort | null = null;
  private waiting: Signal[] = []; // blocks, until there is a worker
  private block: Signal;
  private filled = 0;
  private closed = false;

  constructor({ processorOptions }: { processorOptions: ProcessorOptions }) {
    super();
    const { channels, block, delay, mostDelay } = processorOptions;
    this.channels = channels;
    this.length = block;
    this.block = this.empty();
    this.line = new DelayLine(channels, delay, mostDelay);
    this.port.onmessage = ({ data }: MessageEvent<Command>) => {
      if (data === "close") this.closed = true;
      else this.connect(data);
    };
  }

  process(inputs: Float32Array[][], outputs: Float32Array[][]): boolean {
    const input = inputs[0] ?? [];
    const output = outputs[0] ?? [];
    this.block.forEach((row, c) => {
      const from = input[c]; // none while nothing is connected: silence
      if (from) row.set(from, this.filled);
    });
    this.filled += output[0]!.length;
    if (this.filled >= this.length) {
      this.send(this.block);
      this.block = this.empty();
      this.filled = 0;
    }
    const { delay } = this.line;
    const ready = this.line.read(output);
    if (ready < output[0]!.length) {
      const gap = { frame: currentFrame + ready, samples: this.line.delay - delay };
      this.notify({ underruns: this.line.underruns, gap });
    }
    return !this.closed;
  }

  private connect(worker: MessagePort): void {
    this.worker = worker;
    worker.onmessage = ({ data }: MessageEvent<Delivery>) => this.line.write(data);
    for (const block of this.waiting.splice(0)) this.send(block);
    this.notify("connected");
  }

  private send(block: Signal): void {
    if (this.worker) this.worker.postMessage(block, block.map((row) => row.buffer));
    else this.waiting.push(block);
  }

  private notify(notice: Notice): void {
    this.port.postMessage(notice);
  }

  private empty(): Signal {
    return Array.from({ length: this.channels }, () => new Float32Array(this.length));
  }
}

registerProcessor(PROCESSOR, EnhancerProcessor);

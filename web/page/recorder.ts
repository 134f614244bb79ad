/**
 * The audio thread of the page: records two inputs, the microphone and what the model makes of it. A message has a
 * block of each, and the frame of the context at which they begin.
 */

declare class AudioWorkletProcessor {
  readonly port: MessagePort;
}
declare function registerProcessor(name: string, processor: unknown): void;
declare const currentFrame: number;

const LENGTH = 2048; // samples of a message

class Recorder extends AudioWorkletProcessor {
  private block = [new Float32Array(LENGTH), new Float32Array(LENGTH)];
  private filled = 0;
  private stopped = false;

  constructor() {
    super();
    this.port.onmessage = () => (this.stopped = true);
    this.port.postMessage("ready");
  }

  process(inputs: Float32Array[][]): boolean {
    const quantum = inputs.find((input) => input.length)?.[0]?.length ?? 128;
    this.block.forEach((row, i) => {
      const from = inputs[i]?.[0];
      if (from) row.set(from, this.filled);
    });
    this.filled += quantum;
    if (this.filled >= LENGTH) {
      const start = currentFrame + quantum - LENGTH;
      this.port.postMessage([...this.block, start], this.block.map((row) => row.buffer));
      this.block = [new Float32Array(LENGTH), new Float32Array(LENGTH)];
      this.filled = 0;
    }
    return !this.stopped;
  }
}

registerProcessor("recorder", Recorder);

import { createEnhancerNode, type EnhancerNode, type Gap } from "../src/index.js";

/** A live recording: the microphone, the model, and both as they come. */
export class Microphone {
  readonly noisy: Float32Array[] = [];
  readonly enhanced: Float32Array[] = [];
  private readonly gaps: Gap[] = []; // in the output, of silence
  private readonly delay: number; // of the output at the start, in samples
  private start = 0; // frame of the context at which the recording begins
  onblock: (noisy: Float32Array, enhanced: Float32Array) => void = () => {};

  private constructor(
    readonly context: AudioContext,
    readonly node: EnhancerNode,
    private readonly stream: MediaStream,
    private readonly recorder: AudioWorkletNode,
  ) {
    this.delay = node.latencySamples;
    node.addEventListener("underrun", (event) => this.gaps.push((event as CustomEvent<Gap>).detail));
    recorder.port.onmessage = ({ data }: MessageEvent<[Float32Array, Float32Array, number]>) => this.receive(...data);
  }

  static async open(strength: number | null, device?: MediaStream): Promise<Microphone> {
    // The browser's own noise suppression would come before the model.
    const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false, channelCount: 1 };
    const stream = device ?? (await navigator.mediaDevices.getUserMedia({ audio }));
    const context = new AudioContext({ latencyHint: "interactive" });
    try {
      await context.suspend(); // until everything is connected
      const [node] = await Promise.all([
        createEnhancerNode(context, { strength }),
        context.audioWorklet.addModule(new URL("recorder.js", import.meta.url)),
      ]);
      const recorder = new AudioWorkletNode(context, "recorder", {
        numberOfInputs: 2,
        numberOfOutputs: 0,
        channelCount: 1,
        channelCountMode: "explicit",
      });
      await new Promise((resolve) => (recorder.port.onmessage = resolve));
      const microphone = new Microphone(context, node, stream, recorder);
      const source = context.createMediaStreamSource(stream);
      source.connect(recorder, 0, 0);
      source.connect(node).connect(recorder, 0, 1);
      await context.resume();
      return microphone;
    } catch (error) {
      stopTracks(stream);
      await context.close();
      throw error;
    }
  }

  get seconds(): number {
    return (this.noisy.length * (this.noisy[0]?.length ?? 0)) / this.context.sampleRate;
  }

  /** Play the model's output, or do not. */
  set audible(on: boolean) {
    if (on) this.node.connect(this.context.destination);
    else this.node.disconnect(this.context.destination);
  }

  /** Stop, and return both signals, aligned. */
  async close(): Promise<{ noisy: Float32Array; enhanced: Float32Array; sampleRate: number }> {
    const { sampleRate } = this.context;
    this.recorder.port.postMessage("stop");
    stopTracks(this.stream);
    this.node.close();
    await this.context.close();
    const noisy = concatenate(this.noisy);
    const enhanced = concatenate(this.withoutGaps());
    return { noisy: noisy.slice(0, enhanced.length), enhanced, sampleRate };
  }

  /** The output, without the silence that makes it late. */
  private withoutGaps(): Float32Array[] {
    const enhanced = concatenate(this.enhanced);
    const parts: Float32Array[] = [];
    let at = 0;
    for (const { frame, samples } of [{ frame: this.start, samples: this.delay }, ...this.gaps]) {
      parts.push(enhanced.subarray(at, frame - this.start));
      at = frame - this.start + samples;
    }
    return [...parts, enhanced.subarray(at)];
  }

  private receive(noisy: Float32Array, enhanced: Float32Array, start: number): void {
    if (!this.noisy.length) this.start = start;
    this.noisy.push(noisy);
    this.enhanced.push(enhanced);
    this.onblock(noisy, enhanced);
  }
}

function stopTracks(stream: MediaStream): void {
  for (const track of stream.getTracks()) track.stop();
}

function concatenate(parts: Float32Array[]): Float32Array {
  const whole = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

import { PROCESSOR, type Command, type Gap, type Notice, type ProcessorOptions } from "./processor_options.js";
import { Remote, assetFolder, type AssetOptions } from "./remote.js";

const QUANTUM = 128; // frames that Web Audio processes at a time
const BLOCK_SECONDS = 0.005; // of a message to the worker
const RESERVE_SECONDS = 0.03; // besides the bursts in which Web Audio works
const MOST_RESERVE_SECONDS = 0.5; // after gaps
const MARGIN = 2; // times the longest lateness in the rehearsal

// Servers that render pages import this module, too, and have no Web Audio.
const WorkletNode = (globalThis.AudioWorkletNode ?? class {}) as typeof AudioWorkletNode;

export interface NodeOptions extends AssetOptions {
  /** Channels of the input and the output; 1 by default. All share one gain. */
  channels?: number;
  /** Maximum attenuation of the noise in dB; null, the default, sets no limit. */
  strength?: number | null;
  /**
   * Reserve for a busy device at the start, in seconds; a part of the latency. By default `context.baseLatency` plus
   * twice the longest lateness in a rehearsal of half a second, at least 0.03.
   */
  reserve?: number;
}

/**
 * A Web Audio node that enhances what is connected to it.
 *
 * It dispatches an event "load" about four times per second, and "underrun" when output was not ready in time. Each
 * underrun makes the latency longer by half, until the reserve is 0.5 s; `detail` of the event is a `Gap`.
 */
export class EnhancerNode extends WorkletNode {
  /** Delay of the output in samples of the context; only an underrun changes it. */
  latencySamples: number;
  /** Time that the model needs, divided by the length of the audio; less than 1 keeps up. */
  load = 0;
  /** Number of times that output was not ready. */
  underruns = 0;
  private limit: number | null;

  /** @internal */
  constructor(
    context: BaseAudioContext,
    private readonly remote: Remote,
    options: ProcessorOptions,
    strength: number | null,
  ) {
    super(context, PROCESSOR, {
      numberOfInputs: 1,
      numberOfOutputs: 1,
      outputChannelCount: [options.channels],
      channelCount: options.channels,
      channelCountMode: "explicit",
      processorOptions: options,
    });
    this.latencySamples = options.delay;
    this.limit = strength;
    remote.onload = (load) => {
      this.load = load;
      this.dispatchEvent(new Event("load"));
    };
  }

  /** Delay of the output in seconds. */
  get latency(): number {
    return this.latencySamples / this.context.sampleRate;
  }

  /** @internal Connect the audio thread with the worker. */
  connectWorker(worker: MessagePort): Promise<void> {
    return new Promise((resolve) => {
      this.port.onmessage = ({ data }: MessageEvent<Notice>) => {
        if (data === "connected") {
          resolve();
        } else {
          this.underruns = data.underruns;
          this.latencySamples += data.gap.samples;
          this.dispatchEvent(new CustomEvent<Gap>("underrun", { detail: data.gap }));
        }
      };
      this.command(worker, [worker]);
    });
  }

  /** Maximum attenuation of the noise in dB; null sets no limit. Can be set at any time. */
  get strength(): number | null {
    return this.limit;
  }

  set strength(strength: number | null) {
    if (strength !== null && !(strength >= 0)) {
      throw new RangeError(`strength ${strength}: expected decibels of attenuation, 0 (no change) or more, such as 12`);
    }
    this.limit = strength;
    this.remote.send({ type: "strength", strength });
  }

  /** Stop the worker and free its memory. The node is silent afterwards. */
  close(): void {
    this.disconnect();
    this.command("close");
    this.remote.close();
  }

  private command(command: Command, transfer: Transferable[] = []): void {
    this.port.postMessage(command, transfer);
  }
}

/**
 * Load the model and make a node that enhances what is connected to it.
 *
 *     const node = await createEnhancerNode(context);
 *     context.createMediaStreamSource(microphone).connect(node).connect(context.destination);
 */
export async function createEnhancerNode(
  context: BaseAudioContext,
  { channels = 1, strength = null, reserve, ...assets }: NodeOptions = {},
): Promise<EnhancerNode> {
  if (!context.audioWorklet) throw new Error("live audio needs a secure page: https, or localhost");
  const rate = context.sampleRate;
  const [remote] = await Promise.all([
    Remote.start(assets),
    context.audioWorklet.addModule(new URL("processor.js", assetFolder(assets))),
  ]);
  try {
    const { port1, port2 } = new MessageChannel();
    const rehearse = reserve === undefined;
    const question = { type: "live", port: port1, channels, sampleRate: rate, strength, rehearse } as const;
    const { latency, lateness } = await remote.ask(question, { transfer: [port1] });
    const block = QUANTUM * Math.max(1, Math.round((BLOCK_SECONDS * rate) / QUANTUM));
    const burst = context instanceof AudioContext ? context.baseLatency : 0; // what Web Audio processes without a pause
    const enough = Math.min(Math.max(RESERVE_SECONDS, MARGIN * lateness) + burst, MOST_RESERVE_SECONDS);
    const delay = latency + block + Math.ceil((reserve ?? enough) * rate);
    const mostDelay = Math.max(delay, latency + block + Math.ceil(MOST_RESERVE_SECONDS * rate));
    const node = new EnhancerNode(context, remote, { channels, block, delay, mostDelay }, strength);
    await node.connectWorker(port2);
    return node;
  } catch (error) {
    remote.close();
    throw error;
  }
}

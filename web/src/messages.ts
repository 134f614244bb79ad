import type { ModelInfo } from "./model.js";
import type { Signal } from "./signal.js";

/** Settings of the output. */
export interface EnhanceOptions {
  /** Maximum attenuation of the noise in dB, such as 12. 0 changes nothing; null, the default, sets no limit. */
  strength?: number | null;
  /**
   * Process the first 1.5 s once to initialise the model's state, then start again from the beginning. On by default.
   */
  warmUp?: boolean;
}

/** How fast the model runs on this device. */
export interface Speed {
  /** Time to process a recording, divided by its length. */
  realTimeFactor: number;
  /** Milliseconds for one hop, the unit of live audio: the median, and the 99th percentile. */
  hopMedian: number;
  hopP99: number;
  /** Milliseconds of audio in one hop. */
  hop: number;
}

/** Page to worker. Every request but `cancel` and `strength` has one reply. */
export type Request =
  | { id: number; type: "open"; model: string | Uint8Array; wasm: string }
  | { id: number; type: "enhance"; channels: Signal; sampleRate: number; options: EnhanceOptions }
  | { id: number; type: "measure"; seconds: number }
  | {
      id: number;
      type: "live";
      port: MessagePort;
      channels: number;
      sampleRate: number;
      strength: number | null;
      rehearse: boolean;
    }
  | { id: number; type: "cancel" }
  | { type: "strength"; strength: number | null };

/** Worker to page. */
export type Reply =
  | { id: number; type: "opened"; info: ModelInfo }
  | { id: number; type: "progress"; done: number; total: number }
  | { id: number; type: "enhanced"; channels: Signal }
  | { id: number; type: "measured"; speed: Speed }
  | { id: number; type: "streaming"; latency: number; lateness: number }
  | { id: number; type: "failed"; message: string; cancelled: boolean }
  | { type: "load"; load: number };

/** The reply to each request. */
export interface Answers {
  open: "opened";
  enhance: "enhanced";
  measure: "measured";
  live: "streaming";
}

/** Worker to audio thread: the next output, or a number of samples that will never arrive. */
export type Delivery = Signal | number;

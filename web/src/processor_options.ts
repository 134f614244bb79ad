export const PROCESSOR = "clearstate-enhancer";

/** What the audio thread must know. */
export interface ProcessorOptions {
  channels: number;
  /** Samples of a message to the worker, a multiple of what Web Audio processes at a time. */
  block: number;
  /** Delay of the output at the start, in samples. */
  delay: number;
  /** Longest delay after gaps, in samples. */
  mostDelay: number;
}

/** Node to audio thread: the port of the worker, or the end. */
export type Command = MessagePort | "close";

/** Audio thread to node. */
export type Notice = "connected" | { underruns: number; gap: Gap };

/** Silence in the output, because it was not ready in time. */
export interface Gap {
  /** Where it begins, in samples since the start of the context. */
  frame: number;
  /** Samples by which the latency has grown. */
  samples: number;
}

export const PROCESSOR = "clearstate-enhancer";

/** What the audio thread must know. */
export interface ProcessorOptions {
  channels: number;
  /** Samples of a message to the worker, a multiple of what Web Audio processes at a time. */
  block: number;
  /** Delay of the output in samples. */
  delay: number;
}

/** Node to audio thread: the port of the worker, or the end. */
export type Command = MessagePort | "close";

/** Audio thread to node. */
export type Notice = "connected" | { underruns: number };

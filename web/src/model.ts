import * as ort from "onnxruntime-web/wasm";
import { readMetadata } from "./metadata.js";
import type { Signal } from "./signal.js";

/** The next samples, a multiple of the hop, to as many output samples, delayed by the model's latency. */
export type Advance = (x: Signal) => Promise<Signal>;

/** What a model file says about itself. */
export interface ModelInfo {
  name: string;
  /** Hz. */
  sampleRate: number;
  /** Samples; the model processes multiples of it. */
  hop: number;
  /** Delay of the output in samples, besides the wait for a whole hop. */
  latency: number;
  licence: string;
  version: string;
}

const SAMPLES = "samples";
const OUTPUT = "output";
const STATE = "state_";
const NEXT = "next_";

/** A causal enhancement model, as `clearstate export` writes it: samples and states in, samples and states out. */
export class Model {
  private constructor(
    private readonly session: ort.InferenceSession,
    readonly info: ModelInfo,
    private readonly states: Map<string, number[]>, // name to shape without the batch
  ) {}

  /**
   * @param file the ONNX file
   * @param wasm where the WebAssembly file of ONNX Runtime is; only the first call uses it
   */
  static async open(file: Uint8Array, wasm?: string): Promise<Model> {
    const metadata = readMetadata(file);
    const info = describe(metadata);
    ort.env.wasm.numThreads = 1; // more needs cross-origin isolation, and one is fast enough
    ort.env.logLevel = "error";
    if (wasm) ort.env.wasm.wasmPaths = { wasm };
    const session = await ort.InferenceSession.create(file, { executionProviders: ["wasm"] });
    const states = new Map<string, number[]>();
    for (const input of session.inputMetadata) {
      if (input.name === SAMPLES) continue;
      const shape = input.isTensor ? input.shape.slice(1) : [];
      const known = shape.every((size): size is number => typeof size === "number");
      if (!input.name.startsWith(STATE) || !input.isTensor || !known) {
        throw new Error(`model ${info.name}: unknown input ${input.name}; expected ${SAMPLES} and ${STATE}*`);
      }
      states.set(input.name.slice(STATE.length), shape);
    }
    const outputs = [OUTPUT, ...[...states.keys()].map((name) => NEXT + name)];
    const missing = outputs.filter((name) => !session.outputNames.includes(name));
    if (missing.length || !session.inputNames.includes(SAMPLES)) {
      throw new Error(`model ${info.name}: no ${missing[0] ?? SAMPLES}; export it with \`clearstate export\``);
    }
    return new Model(session, info, states);
  }

  /** Open a stream for `rows` independent signals. The returned function holds the state. */
  openStream(rows: number): Advance {
    let states = new Map<string, ort.Tensor>();
    for (const [name, shape] of this.states) {
      const size = shape.reduce((product, n) => product * n, rows);
      states.set(name, new ort.Tensor("float32", new Float32Array(size), [rows, ...shape]));
    }
    return async (x) => {
      const length = x[0]!.length;
      const samples = new Float32Array(rows * length);
      x.forEach((row, r) => samples.set(row, r * length));
      const feeds: Record<string, ort.Tensor> = { [SAMPLES]: new ort.Tensor("float32", samples, [rows, length]) };
      for (const [name, tensor] of states) feeds[STATE + name] = tensor;
      const results = await this.session.run(feeds);
      states = new Map([...this.states.keys()].map((name) => [name, results[NEXT + name]!]));
      const output = results[OUTPUT]!.data as Float32Array;
      return Array.from({ length: rows }, (_, r) => output.slice(r * length, (r + 1) * length));
    };
  }
}

function describe(metadata: Map<string, string>): ModelInfo {
  const name = metadata.get("name");
  if (!name) throw new Error("not a clearstate model: the file has no metadata; write one with `clearstate export`");
  if (metadata.get("task") !== "enhance" || metadata.get("causal") !== "1") {
    throw new Error(`model ${name} is not a causal enhancement model; use live`);
  }
  const number = (key: string): number => {
    const value = Number(metadata.get(key));
    if (!Number.isInteger(value)) throw new Error(`model ${name}: ${key} is ${metadata.get(key)}; expected a number`);
    return value;
  };
  return {
    name,
    sampleRate: number("sample_rate"),
    hop: number("hop"),
    latency: number("latency"),
    licence: metadata.get("licence") ?? "",
    version: metadata.get("version") ?? "",
  };
}

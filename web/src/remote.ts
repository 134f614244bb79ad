import type { Answers, Reply, Request } from "./messages.js";
import type { ModelInfo } from "./model.js";

/** Where the files of the package are, and which model to use. */
export interface AssetOptions {
  /** Folder with the files of `dist/`, if they are not beside this module. */
  assets?: string | URL;
  /** An ONNX file of a causal enhancement model, or its address; the default is the one in the package. */
  model?: string | URL | ArrayBuffer | Uint8Array;
}

type Kind = keyof Answers;
type Question<K extends Kind> = Omit<Extract<Request, { type: K }>, "id">;
type Answer<K extends Kind> = Extract<Reply, { type: Answers[K] }>;

export function assetFolder({ assets }: AssetOptions): URL {
  return assets === undefined ? new URL("./", import.meta.url) : new URL(assets, document.baseURI);
}

/** The worker that runs the model. */
export class Remote {
  info!: ModelInfo;
  onload: (load: number) => void = () => {};
  private readonly worker: Worker;
  private readonly open = new Map<number, (reply: Reply | Error) => void>();
  private next = 0;

  static async start(options: AssetOptions): Promise<Remote> {
    const remote = new Remote(assetFolder(options), options.model);
    return remote.ready;
  }

  private readonly ready: Promise<Remote>;

  private constructor(folder: URL, model: AssetOptions["model"]) {
    this.worker = new Worker(new URL("worker.js", folder), { type: "module" });
    this.worker.onmessage = ({ data }: MessageEvent<Reply>) => {
      if (data.type === "load") this.onload(data.load);
      else this.open.get(data.id)?.(data);
    };
    this.worker.onerror = (event) => this.fail(new Error(event.message || `cannot load ${new URL("worker.js", folder)}`));
    const bytes = model instanceof ArrayBuffer ? new Uint8Array(model) : model;
    const file = bytes instanceof Uint8Array ? bytes : new URL(bytes ?? "model.onnx", bytes ? document.baseURI : folder).href;
    const wasm = new URL("ort-wasm-simd-threaded.wasm", folder).href;
    this.ready = this.ask({ type: "open", model: file, wasm }).then(
      ({ info }) => Object.assign(this, { info }),
      (error: unknown) => {
        this.close();
        throw error;
      },
    );
  }

  /** Send a request and wait for the answer. */
  ask<K extends Kind>(
    question: Question<K> & { type: K },
    { transfer = [], progress, signal }: {
      transfer?: Transferable[];
      progress?: ((done: number, total: number) => void) | undefined;
      signal?: AbortSignal | undefined;
    } = {},
  ): Promise<Answer<K>> {
    const id = this.next++;
    return new Promise((resolve, reject) => {
      const cancel = (): void => this.send({ id, type: "cancel" });
      const settle = (): void => {
        this.open.delete(id);
        signal?.removeEventListener("abort", cancel);
      };
      signal?.throwIfAborted();
      signal?.addEventListener("abort", cancel);
      this.open.set(id, (reply) => {
        if (!(reply instanceof Error) && reply.type === "progress") {
          progress?.(reply.done, reply.total);
          return;
        }
        settle();
        if (reply instanceof Error) reject(reply);
        else if (reply.type === "failed") reject(reply.cancelled ? signal?.reason : new Error(reply.message));
        else resolve(reply as Answer<K>);
      });
      this.send({ ...question, id } as unknown as Request, transfer);
    });
  }

  send(request: Request, transfer: Transferable[] = []): void {
    this.worker.postMessage(request, transfer);
  }

  close(): void {
    this.worker.terminate();
    this.fail(new Error("closed"));
  }

  private fail(error: Error): void {
    for (const settle of [...this.open.values()]) settle(error);
  }
}

import type { Chain } from "./chain.js";
import type { Delivery } from "./messages.js";
import { join, lengthOf, type Signal } from "./signal.js";
import { turn } from "./turn.js";

const MOST_SECONDS = 1; // of input that may wait; a device that falls further behind skips it
const REPORT_SECONDS = 0.25; // between two reports of the load

/** A live signal: chunks arrive at a port, and the output that they complete leaves through it. */
export class Live {
  /** Of the signal path, in samples. */
  readonly latency: number;
  private chain: Chain;
  private strength: number | null | undefined; // if it has changed
  private waiting: Signal[] = [];
  private busy = false;
  private due = 0; // output samples that the input so far will give
  private work = 0; // milliseconds
  private worked = 0; // samples

  constructor(
    private readonly open: () => Chain,
    private readonly port: Pick<MessagePort, "postMessage" | "onmessage">,
    private readonly sampleRate: number,
    private readonly report: (load: number) => void,
  ) {
    this.chain = open();
    this.latency = this.chain.latency;
    port.onmessage = ({ data }: MessageEvent<Signal>) => this.receive(data);
  }

  /** Set the maximum attenuation in dB. */
  setStrength(strength: number | null): void {
    this.chain.strength = this.strength = strength;
  }

  private receive(x: Signal): void {
    this.waiting.push(x.map((row) => row.map((value) => (Number.isFinite(value) ? value : 0))));
    if (!this.busy) void this.run();
  }

  private async run(): Promise<void> {
    this.busy = true;
    while (this.waiting.length) {
      await turn();
      const x = join(...this.waiting.splice(0)); // everything that has arrived so far
      this.due += lengthOf(x);
      if (lengthOf(x) > MOST_SECONDS * this.sampleRate) {
        this.skip();
        continue;
      }
      const before = performance.now();
      const y = await this.chain.push(x);
      this.due -= lengthOf(y);
      this.deliver(y);
      this.measure(performance.now() - before, lengthOf(x));
    }
    this.busy = false;
  }

  /** Start again with the next input. */
  private skip(): void {
    this.deliver(this.due);
    this.due = 0;
    this.chain = this.open();
    if (this.strength !== undefined) this.chain.strength = this.strength;
  }

  private deliver(delivery: Delivery): void {
    const transfer = typeof delivery === "number" ? [] : delivery.map((row) => row.buffer);
    this.port.postMessage(delivery, { transfer });
  }

  private measure(milliseconds: number, samples: number): void {
    this.work += milliseconds;
    this.worked += samples;
    if (this.worked < REPORT_SECONDS * this.sampleRate) return;
    this.report((this.work * this.sampleRate) / (1000 * this.worked));
    this.work = this.worked = 0;
  }
}

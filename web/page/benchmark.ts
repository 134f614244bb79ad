import { createEnhancer } from "../src/index.js";

const SECONDS = 10;

const status = document.getElementById("status")!;
const button = document.getElementById("run") as HTMLButtonElement;

async function run(): Promise<void> {
  button.disabled = true;
  document.getElementById("rows")!.replaceChildren();
  try {
    status.textContent = "Loading the model …";
    const started = performance.now();
    const enhancer = await createEnhancer();
    const loaded = performance.now() - started;
    status.textContent = "Measuring …";
    const speed = await enhancer.measure(SECONDS);
    enhancer.close();
    row("Model ready after", `${(loaded / 1000).toFixed(2)} s`);
    row("Recording, real-time factor", speed.realTimeFactor.toFixed(3), "factor");
    row(`Live, one hop of ${speed.hop} ms: median`, `${speed.hopMedian.toFixed(2)} ms`);
    row("Live, one hop: 99th percentile", `${speed.hopP99.toFixed(2)} ms`);
    row("Live, real-time factor", (speed.hopMedian / speed.hop).toFixed(3), "live-factor");
    status.textContent = `Live audio runs at ${Number((speed.hop / speed.hopMedian).toPrecision(2))} times real time.`;
  } catch (error) {
    status.textContent = error instanceof Error ? error.message : String(error);
  }
  button.disabled = false;
}

function row(name: string, value: string, id = ""): void {
  const line = document.createElement("tr");
  const [head, cell] = [document.createElement("th"), document.createElement("td")];
  head.scope = "row";
  head.textContent = name;
  cell.textContent = value;
  cell.id = id;
  line.append(head, cell);
  document.getElementById("rows")!.append(line);
}

document.getElementById("agent")!.textContent = navigator.userAgent;
button.addEventListener("click", () => void run());
void run();

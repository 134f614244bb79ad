import { createEnhancer, toWav, type Enhancer, type Signal } from "../src/index.js";
import { Microphone } from "./microphone.js";
import { Player } from "./player.js";
import { appendSpectrogram, clearSpectrogram, drawSpectrogram } from "./spectrogram.js";

const NO_LIMIT = 30; // rightmost position of the strength slider; the others are decibels
const LONGEST_SECONDS = 1800; // of a microphone recording
const COLUMNS = 3; // of the live picture, per block
const MOST_REDRAWN = 600; // seconds of sound that are drawn again while the slider moves

function element<T extends HTMLElement = HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}

interface Result {
  name: string;
  noisy: Signal;
  enhanced: Signal; // at full strength
  output: Signal; // at the chosen strength
  rate: number;
}

const ui = {
  status: element("status"),
  error: element("error"),
  progress: element("progress"),
  bar: element<HTMLProgressElement>("progress-bar"),
  strength: element<HTMLInputElement>("strength"),
  position: element<HTMLInputElement>("position"),
  play: element<HTMLButtonElement>("play"),
  download: element<HTMLAnchorElement>("download"),
  microphone: element<HTMLButtonElement>("microphone"),
  audible: element<HTMLInputElement>("audible"),
};

let enhancer: Promise<Enhancer> = open();
let player: Player | null = null;
let result: Result | null = null;
let microphone: Microphone | null = null;
let work: AbortController | null = null;

async function open(): Promise<Enhancer> {
  const ready = await createEnhancer();
  const { name, version, licence } = ready.model;
  element("model").textContent = `${name} ${version}, ${licence}`;
  return ready;
}

// ------------------------------------------------------------------------------------------------------- recordings

async function enhanceFile(file: Blob, name: string): Promise<void> {
  work?.abort();
  const mine = (work = new AbortController());
  player?.stop();
  showError(null);
  ui.bar.removeAttribute("value");
  ui.progress.hidden = false;
  ui.status.textContent = `Cleaning up ${name} …`;
  try {
    const started = performance.now();
    const done = await (await enhancer).enhanceFile(file, {
      signal: mine.signal,
      onProgress: (seconds, total) => (ui.bar.value = seconds / total),
    });
    const seconds = (performance.now() - started) / 1000;
    const length = done.noisy[0]!.length / done.sampleRate;
    ui.status.textContent = `Done: ${length.toFixed(1)} s of sound in ${seconds.toFixed(1)} s.`;
    show({ name, noisy: done.noisy, enhanced: done.enhanced, output: done.enhanced, rate: done.sampleRate });
  } catch (error) {
    ui.status.textContent = mine.signal.aborted ? "Cancelled." : "";
    if (!mine.signal.aborted) showError(error);
  } finally {
    if (work === mine) {
      work = null;
      ui.progress.hidden = true;
    }
  }
}

function show(next: Result): void {
  result = next;
  element("result").hidden = false;
  const seconds = next.noisy[0]!.length / next.rate;
  const channels = next.noisy.length === 1 ? "mono" : next.noisy.length === 2 ? "stereo" : `${next.noisy.length} channels`;
  element("result-title").textContent = next.name;
  element("result-facts").textContent = `${clock(seconds)} · ${next.rate / 1000} kHz · ${channels}`;
  element("duration").textContent = clock(seconds);
  for (const range of document.querySelectorAll(".range")) range.textContent = `0 to ${next.rate / 2000} kHz`;
  ui.position.max = String(seconds);
  player ??= new Player();
  player.onchange = follow;
  player.load(next.noisy, next.enhanced, next.rate);
  picture("before", next.noisy);
  applyStrength(true);
  follow();
  element("result-title").focus({ preventScroll: true });
  element("result").scrollIntoView({ behavior: "smooth", block: "nearest" });
}

function picture(side: "before" | "after", signal: Signal): void {
  const canvas = element<HTMLCanvasElement>(side);
  drawSpectrogram(canvas, signal[0]!);
  const level = 10 * Math.log10(signal[0]!.reduce((sum, value) => sum + value * value, 1e-12) / signal[0]!.length);
  canvas.setAttribute("aria-label", `Spectrogram ${side}; level ${level.toFixed(0)} dB relative to full scale`);
}

/** The output between the original and the result at full strength, without running the model again. */
function applyStrength(final: boolean): void {
  const decibels = strength();
  const text = decibels === null ? "no limit" : decibels === 0 ? "off" : `up to ${decibels} dB`;
  element("strength-text").textContent = text;
  ui.strength.setAttribute("aria-valuetext", text);
  if (microphone) microphone.node.strength = decibels;
  if (!result || !player) return;
  const share = decibels === null ? 1 : 1 - 10 ** (-decibels / 20);
  player.setShare(share);
  const { noisy, enhanced, rate } = result;
  if (!final && noisy[0]!.length > MOST_REDRAWN * rate) return;
  const output = share === 1 ? enhanced : noisy.map((row, c) => row.map((x, i) => x + share * (enhanced[c]![i]! - x)));
  result.output = output;
  picture("after", output);
  if (!final) return;
  player.match(noisy, output, rate);
  URL.revokeObjectURL(ui.download.href);
  ui.download.href = URL.createObjectURL(toWav(output, rate));
  ui.download.download = `${result.name.replace(/\.[^.]*$/, "")}.clear.wav`;
}

function strength(): number | null {
  return ui.strength.valueAsNumber === NO_LIMIT ? null : ui.strength.valueAsNumber;
}

/** Show where the player is. */
function follow(): void {
  if (!player) return;
  const { position, duration, playing } = player;
  element("time").textContent = clock(position);
  ui.position.value = String(position);
  ui.position.setAttribute("aria-valuetext", `${clock(position)} of ${clock(duration)}`);
  ui.play.classList.toggle("playing", playing);
  ui.play.setAttribute("aria-label", playing ? "Pause" : "Play");
  for (const head of document.querySelectorAll<HTMLElement>(".head")) head.style.left = `${(100 * position) / duration}%`;
  if (playing) requestAnimationFrame(follow);
}

// ------------------------------------------------------------------------------------------------------------- live

async function startMicrophone(): Promise<void> {
  showError(null);
  player?.stop();
  ui.microphone.disabled = true;
  ui.status.textContent = "Waiting for the microphone …";
  try {
    microphone = await Microphone.open(strength());
  } catch (error) {
    showError(error instanceof DOMException ? `No microphone: ${error.message.toLowerCase()}.` : error);
    ui.microphone.disabled = false;
    return;
  } finally {
    ui.status.textContent = "";
  }
  const { node, context } = microphone;
  element("sources").hidden = true;
  element("result").hidden = true;
  element("live").hidden = false;
  ui.audible.checked = false;
  element("stop").focus();
  const canvases = ["live-before", "live-after"].map((id) => element<HTMLCanvasElement>(id));
  canvases.forEach(clearSpectrogram);
  const facts = (): void => {
    const missed = node.underruns ? `, ${node.underruns} gaps` : ", no gaps";
    element("live-facts").textContent = `Delay ${Math.round(1000 * node.latency)} ms at ${context.sampleRate / 1000} kHz${missed}.`;
  };
  facts();
  node.addEventListener("underrun", facts);
  node.addEventListener("load", () => {
    element<HTMLMeterElement>("load").value = Math.min(1, node.load);
    element("load-text").textContent = `${Math.round(100 * node.load)} %`;
  });
  const recent = canvases.map(() => new Float32Array(4096));
  const mine = microphone;
  mine.onblock = (...blocks) => {
    blocks.forEach((block, i) => {
      recent[i]!.copyWithin(0, block.length);
      recent[i]!.set(block, recent[i]!.length - block.length);
      appendSpectrogram(canvases[i]!, recent[i]!, COLUMNS);
    });
    element("live-time").textContent = clock(mine.seconds);
    if (mine.seconds > LONGEST_SECONDS) void stopMicrophone();
  };
}

async function stopMicrophone(): Promise<void> {
  const mine = microphone;
  if (!mine) return;
  microphone = null;
  const { noisy, enhanced, sampleRate } = await mine.close();
  element("live").hidden = true;
  element("sources").hidden = false;
  ui.microphone.disabled = false;
  if (!enhanced.length) return;
  const time = new Date().toTimeString().slice(0, 5).replace(":", ".");
  ui.strength.value = String(NO_LIMIT); // it is in the recording already
  show({ name: `Microphone ${time}`, noisy: [noisy], enhanced: [enhanced], output: [enhanced], rate: sampleRate });
}

// ------------------------------------------------------------------------------------------------------------- page

function showError(error: unknown): void {
  ui.error.hidden = error === null;
  ui.error.textContent = error instanceof Error ? error.message : String(error ?? "");
}

function clock(seconds: number): string {
  return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
}

element<HTMLInputElement>("file").addEventListener("change", (event) => {
  const input = event.currentTarget as HTMLInputElement;
  const file = input.files?.[0];
  input.value = ""; // the same file can be chosen again
  if (file) void enhanceFile(file, file.name);
});
element("example").addEventListener("click", async () => {
  await enhanceFile(await (await fetch("example.flac")).blob(), "Example, helicopter");
});
element("cancel").addEventListener("click", () => work?.abort());
ui.microphone.addEventListener("click", () => void startMicrophone());
element("stop").addEventListener("click", () => void stopMicrophone());
ui.audible.addEventListener("change", () => {
  if (microphone) microphone.audible = ui.audible.checked;
});
ui.strength.addEventListener("input", () => applyStrength(false));
ui.strength.addEventListener("change", () => applyStrength(true));
ui.play.addEventListener("click", () => void (player?.playing ? player.stop() : player?.play()));
ui.position.addEventListener("input", () => void player?.seek(ui.position.valueAsNumber));
for (const input of document.querySelectorAll<HTMLInputElement>("input[name=side]")) {
  input.addEventListener("change", () => select(input.value === "after"));
}
for (const side of ["before", "after"] as const) {
  element(side).addEventListener("click", (event) => {
    const box = element(side).getBoundingClientRect();
    void player?.seek(((event.clientX - box.left) / box.width) * player.duration);
  });
}

function select(after: boolean): void {
  player?.select(after);
  element("figure-before").classList.toggle("heard", !after);
  element("figure-after").classList.toggle("heard", after);
}
select(true);

let dragged = 0;
addEventListener("dragenter", (event) => {
  if (event.dataTransfer?.types.includes("Files")) element("veil").hidden = ++dragged === 0;
});
addEventListener("dragleave", () => (element("veil").hidden = (dragged = Math.max(0, dragged - 1)) === 0));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  dragged = 0;
  element("veil").hidden = true;
  const file = event.dataTransfer?.files[0];
  if (file && !microphone) void enhanceFile(file, file.name);
});
addEventListener("resize", () => {
  if (!result) return;
  picture("before", result.noisy);
  picture("after", result.output);
});

enhancer.catch((error: unknown) => {
  element("model").textContent = "not loaded";
  showError(error);
});
if ("serviceWorker" in navigator) {
  void navigator.serviceWorker.register("service_worker.js");
  void navigator.serviceWorker.ready.then(() => (element("offline").textContent = "Ready to work offline."));
}

// For tests: what the page has computed.
declare global {
  interface Window {
    clearstate: { result: () => Result | null; microphone: () => Microphone | null };
  }
}
window.clearstate = { result: () => result, microphone: () => microphone };

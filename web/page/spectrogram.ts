import { RealFFT } from "../src/fft.js";

const SIZE = 1024; // samples of a frame
const FLOOR_DB = -105;
const TOP_DB = -25;

const fft = new RealFFT(SIZE);
const window_ = Float64Array.from({ length: SIZE }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / SIZE));
const frame = new Float64Array(SIZE);
const palette = colours();

/** Draw the levels of a signal: time to the right, frequency upwards. */
export function drawSpectrogram(canvas: HTMLCanvasElement, x: Float32Array): void {
  fit(canvas);
  const { width, height } = canvas;
  const image = new ImageData(width, height);
  for (let column = 0; column < width; column++) {
    const centre = Math.round(((column + 0.5) / width) * x.length);
    paintColumn(image, column, x, centre - SIZE / 2);
  }
  canvas.getContext("2d")!.putImageData(image, 0, 0);
}

/** Shift the picture to the left, and draw `x` at its right edge, one column per frame. */
export function appendSpectrogram(canvas: HTMLCanvasElement, x: Float32Array, columns: number): void {
  const context = canvas.getContext("2d")!;
  const image = new ImageData(columns, canvas.height);
  for (let column = 0; column < columns; column++) {
    paintColumn(image, column, x, Math.round(((column + 1) / columns) * x.length) - SIZE);
  }
  context.drawImage(canvas, -columns, 0);
  context.putImageData(image, canvas.width - columns, 0);
}

export function clearSpectrogram(canvas: HTMLCanvasElement): void {
  fit(canvas);
  const context = canvas.getContext("2d")!;
  context.fillStyle = `rgb(${palette.slice(0, 3).join(" ")})`;
  context.fillRect(0, 0, canvas.width, canvas.height);
}

/** One pixel of the canvas is one of the screen. */
function fit(canvas: HTMLCanvasElement): void {
  const { width, height } = canvas.getBoundingClientRect();
  canvas.width = Math.max(1, Math.round(width * devicePixelRatio));
  canvas.height = Math.max(1, Math.round(height * devicePixelRatio));
}

function paintColumn(image: ImageData, column: number, x: Float32Array, start: number): void {
  for (let i = 0; i < SIZE; i++) frame[i] = window_[i]! * (x[start + i] ?? 0);
  const spectrum = fft.forward(frame);
  const { width, height } = image;
  const bins = fft.bins - 1;
  for (let y = 0; y < height; y++) {
    const low = Math.floor(((height - 1 - y) / height) * bins);
    const high = Math.max(low + 1, Math.floor(((height - y) / height) * bins));
    let power = 0;
    for (let f = low; f < high; f++) power = Math.max(power, spectrum[2 * f]! ** 2 + spectrum[2 * f + 1]! ** 2);
    const level = 10 * Math.log10(power * (2 / SIZE) ** 2 + 1e-20);
    const shade = Math.round(255 * Math.min(1, Math.max(0, (level - FLOOR_DB) / (TOP_DB - FLOOR_DB))));
    const at = 4 * (y * width + column);
    image.data[at] = palette[3 * shade]!;
    image.data[at + 1] = palette[3 * shade + 1]!;
    image.data[at + 2] = palette[3 * shade + 2]!;
    image.data[at + 3] = 255;
  }
}

/** Dark blue over teal to a warm white; lightness rises evenly, so it also works without colour. */
function colours(): Uint8ClampedArray {
  const stops = [[11, 15, 28], [22, 38, 72], [20, 79, 108], [28, 128, 128], [92, 176, 128], [196, 214, 130], [255, 244, 200]];
  const table = new Uint8ClampedArray(3 * 256);
  for (let i = 0; i < 256; i++) {
    const place = (i / 255) * (stops.length - 1);
    const left = Math.min(Math.floor(place), stops.length - 2);
    for (let c = 0; c < 3; c++) {
      table[3 * i + c] = stops[left]![c]! + (place - left) * (stops[left + 1]![c]! - stops[left]![c]!);
    }
  }
  return table;
}

import { RealFFT } from "./fft.js";
import { join, lengthOf, part, silence, type Signal } from "./signal.js";

/** The noisy and the enhanced signal, at the model's rate and with the same delay. */
export interface Pair {
  noisy: Signal;
  enhanced: Signal;
}

const GAIN_SECONDS = 0.004; // hop of the gain above the model's band
const GAIN_FALL_SECONDS = 0.05;
const GAIN_RISE_SECONDS = 0.004;
const SILENCE = 1e-30; // power

/**
 * One gain for all channels at each time and frequency, which keeps the stereo image: the least-squares fit
 * G = sum Y X* / sum |X|² over channels. The same as `Link` in `clearstate/tasks/stereo.py`.
 */
export class Link {
  readonly delay: number;
  private readonly window: Float64Array; // its squares add to 1
  private readonly fft: RealFFT;
  private held: Pair;
  private tail: Signal; // the second half of the last frame

  constructor(private readonly channels: number, readonly hop: number) {
    this.delay = hop;
    this.fft = new RealFFT(2 * hop);
    this.window = Float64Array.from({ length: 2 * hop }, (_, i) => Math.sin((Math.PI * i) / (2 * hop)));
    this.held = { noisy: silence(channels, hop), enhanced: silence(channels, hop) };
    this.tail = silence(channels, hop);
  }

  /** The next pair; returns what it determines, `delay` samples late. */
  push(pair: Pair): Pair {
    const { hop, window, fft } = this;
    const held = joinPairs(this.held, pair);
    const count = Math.floor(lengthOf(held.noisy) / hop) - 1; // frames
    const enhanced = silence(this.channels, count * hop);
    for (let t = 0; t < count; t++) {
      const spectra = (signal: Signal): Float64Array[] =>
        signal.map((row) => fft.forward(window.map((w, i) => w * row[t * hop + i]!)));
      const x = spectra(held.noisy);
      const y = spectra(held.enhanced);
      for (let f = 0; f < 2 * fft.bins; f += 2) {
        let re = 0;
        let im = 0;
        let power = SILENCE;
        for (let c = 0; c < this.channels; c++) {
          const [a, b, p, q] = [x[c]![f]!, x[c]![f + 1]!, y[c]![f]!, y[c]![f + 1]!];
          re += p * a + q * b;
          im += q * a - p * b;
          power += a * a + b * b;
        }
        for (const row of x) {
          const [a, b] = [row[f]!, row[f + 1]!];
          row[f] = (re * a - im * b) / power;
          row[f + 1] = (re * b + im * a) / power;
        }
      }
      x.forEach((spectrum, c) => {
        const frame = fft.inverse(spectrum);
        const out = enhanced[c]!;
        const tail = this.tail[c]!;
        for (let i = 0; i < hop; i++) {
          out[t * hop + i] = tail[i]! + frame[i]! * window[i]!;
          tail[i] = frame[hop + i]! * window[hop + i]!;
        }
      });
    }
    this.held = { noisy: join(part(held.noisy, count * hop)), enhanced: join(part(held.enhanced, count * hop)) };
    return { noisy: part(held.noisy, 0, count * hop), enhanced };
  }

  /** The rest, as if silence followed. */
  finish(): Pair {
    const rest = silence(this.channels, 2 * this.hop - 1);
    return this.push({ noisy: rest, enhanced: rest });
  }
}

/** The gain above the model's band. The same as `HighGain` in `clearstate/tasks/stereo.py`, which describes it. */
export class HighGain {
  private readonly hop: number;
  private readonly window: Float64Array;
  private readonly fft: RealFFT;
  private readonly rise: number;
  private readonly fall: number;
  private held: Pair | null = null; // the last hop
  private now: number | null = null; // the current gain; null before the first hop with a signal
  private curve: number[] = []; // one value per sample, at the model's rate

  /** @param curveFrom the first sample of the curve: before the signal, by the delay of the pairs */
  constructor(rate: number, grid: number, private curveFrom: number) {
    const longest = Math.max(1, Math.floor(GAIN_SECONDS * rate));
    this.hop = largestDivisor(grid, longest);
    this.window = Float64Array.from({ length: 2 * this.hop }, (_, i) => 0.5 - 0.5 * Math.cos((Math.PI * i) / this.hop));
    this.fft = new RealFFT(2 * this.hop);
    this.rise = 1 - Math.exp(-this.hop / (GAIN_RISE_SECONDS * rate));
    this.fall = 1 - Math.exp(-this.hop / (GAIN_FALL_SECONDS * rate));
  }

  /** Extend the gain curve with the next samples. */
  push(pair: Pair): void {
    const channels = pair.noisy.length;
    const before = this.held ?? { noisy: silence(channels, this.hop), enhanced: silence(channels, this.hop) };
    const held = joinPairs(before, pair);
    const count = Math.floor(lengthOf(held.noisy) / this.hop) - 1;
    for (let t = 0; t < count; t++) {
      const [from, to] = this.follow(this.energy(held.noisy, t), this.energy(held.enhanced, t));
      for (let i = 1; i <= this.hop; i++) this.curve.push(from + ((to - from) * i) / this.hop);
    }
    const rest = count * this.hop;
    this.held = { noisy: join(part(held.noisy, rest)), enhanced: join(part(held.enhanced, rest)) };
  }

  /** The gain at output samples start .. end, `up / down` model samples apart; drops the curve before them. */
  at(start: number, end: number, up: number, down: number): Float64Array {
    const { curve, curveFrom } = this;
    const gain = Float64Array.from({ length: end - start }, (_, m) => {
      if (!curve.length) return 1;
      const place = Math.min(Math.max(((start + m) * up) / down - curveFrom, 0), curve.length - 1);
      const left = Math.floor(place);
      const right = Math.min(left + 1, curve.length - 1);
      return curve[left]! + (place - left) * (curve[right]! - curve[left]!);
    });
    const past = Math.min(
      Math.max(0, Math.floor((end * up) / down) - 1 - curveFrom),
      Math.max(0, curve.length - 1),
    );
    this.curve = curve.slice(past);
    this.curveFrom += past;
    return gain;
  }

  /** The energy in the top octave of frame t, over all channels. */
  private energy(signal: Signal, t: number): number {
    let sum = 0;
    for (const row of signal) {
      const spectrum = this.fft.forward(this.window.map((w, i) => w * row[t * this.hop + i]!));
      for (let i = 2 * Math.floor(this.hop / 2); i < spectrum.length; i++) sum += spectrum[i]! ** 2;
    }
    return sum;
  }

  /** The gain before and after the hop that follows a frame with these energies. */
  private follow(noisy: number, enhanced: number): [number, number] {
    if (noisy <= SILENCE) {
      this.now = null; // nothing to follow: the next sound sets the gain at once
      return [1, 1];
    }
    const target = Math.min(1, Math.sqrt(enhanced / noisy));
    const before = this.now ?? target;
    this.now = before + (target > before ? this.rise : this.fall) * (target - before);
    return [before, this.now];
  }
}

export function joinPairs(a: Pair, b: Pair): Pair {
  return { noisy: join(a.noisy, b.noisy), enhanced: join(a.enhanced, b.enhanced) };
}

/** A hop near `wanted` that is a multiple or a divisor of `grid`, so that neither adds latency to the other. */
export function inStep(grid: number, wanted: number): number {
  if (grid <= wanted) return grid * Math.ceil(wanted / grid);
  const divisor = largestDivisor(grid, wanted);
  return 2 * divisor > wanted ? divisor : grid;
}

function largestDivisor(n: number, most: number): number {
  let divisor = most;
  while (n % divisor) divisor--;
  return divisor;
}

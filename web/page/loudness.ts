import type { Signal } from "../src/index.js";

const BLOCK_SECONDS = 0.4;
const OVERLAP = 4; // blocks begin this many times per block
const ABSOLUTE_LUFS = -70;
const RELATIVE_LU = -10;

/** The integrated loudness of ITU-R BS.1770-4 in LUFS; -Infinity for silence. */
export function loudness(signal: Signal, rate: number): number {
  const step = Math.max(1, Math.round((BLOCK_SECONDS * rate) / OVERLAP));
  const steps = Math.floor((signal[0]?.length ?? 0) / step);
  const energy = new Float64Array(steps); // of all channels
  for (const row of signal) {
    const filters = [shelf(rate), highPass(rate)];
    for (let k = 0; k < steps; k++) {
      for (let i = k * step; i < (k + 1) * step; i++) {
        let value = row[i]!;
        for (const filter of filters) value = filter(value);
        energy[k]! += value * value;
      }
    }
  }
  const powers: number[] = [];
  for (let k = 0; k + Math.min(OVERLAP, steps) <= steps && steps; k++) {
    const part = energy.subarray(k, k + OVERLAP);
    powers.push(part.reduce((sum, value) => sum + value, 0) / (part.length * step));
  }
  const loud = powers.filter((power) => level(power) > ABSOLUTE_LUFS);
  const gate = level(mean(loud)) + RELATIVE_LU;
  return level(mean(loud.filter((power) => level(power) > gate)));
}

function level(power: number): number {
  return -0.691 + 10 * Math.log10(power);
}

function mean(values: number[]): number {
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : 0;
}

/** The first filter of the standard, which stands for the head, at any rate. */
function shelf(rate: number): (x: number) => number {
  const k = Math.tan((Math.PI * 1681.974450955533) / rate);
  const q = 0.7071752369554196;
  const high = 10 ** (3.999843853973347 / 20);
  const band = high ** 0.4996667741545416;
  const scale = 1 + k / q + k * k;
  return biquad(
    [(high + (band * k) / q + k * k) / scale, (2 * (k * k - high)) / scale, (high - (band * k) / q + k * k) / scale],
    [(2 * (k * k - 1)) / scale, (1 - k / q + k * k) / scale],
  );
}

/** The second filter of the standard. */
function highPass(rate: number): (x: number) => number {
  const k = Math.tan((Math.PI * 38.13547087602444) / rate);
  const q = 0.5003270373238773;
  const scale = 1 + k / q + k * k;
  return biquad([1, -2, 1], [(2 * (k * k - 1)) / scale, (1 - k / q + k * k) / scale]);
}

function biquad([b0, b1, b2]: [number, number, number], [a1, a2]: [number, number]): (x: number) => number {
  let [s1, s2] = [0, 0];
  return (x) => {
    const y = b0 * x + s1;
    s1 = b1 * x - a1 * y + s2;
    s2 = b2 * x - a2 * y;
    return y;
  };
}

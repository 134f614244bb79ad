import { lengthOf, type Signal } from "./signal.js";

/** A signal as a 16-bit WAV file. */
export function toWav(signal: Signal, sampleRate: number): Blob {
  const channels = signal.length;
  const size = 2 * channels * lengthOf(signal);
  const view = new DataView(new ArrayBuffer(44 + size));
  const text = (at: number, value: string): void =>
    [...value].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + size, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // size of the format
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, channels, true);
  view.setUint32(24, sampleRate, true);
  view.setUint32(28, sampleRate * channels * 2, true);
  view.setUint16(32, channels * 2, true);
  view.setUint16(34, 16, true); // bits
  text(36, "data");
  view.setUint32(40, size, true);
  signal.forEach((row, c) => {
    for (let i = 0; i < row.length; i++) {
      const value = Math.round(row[i]! * 32_768);
      view.setInt16(44 + 2 * (i * channels + c), Math.min(Math.max(value, -32_768), 32_767), true);
    }
  });
  return new Blob([view], { type: "audio/wav" });
}

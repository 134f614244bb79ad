import type { Signal } from "./signal.js";

const USUAL_RATE = 48_000;

/** Decode an audio file at its own sample rate. */
export async function decode(file: Blob): Promise<{ channels: Signal; sampleRate: number }> {
  const bytes = await file.arrayBuffer();
  const sampleRate = storedRate(new Uint8Array(bytes)) ?? USUAL_RATE;
  try {
    const audio = await new OfflineAudioContext(1, 1, sampleRate).decodeAudioData(bytes);
    return { channels: Array.from({ length: audio.numberOfChannels }, (_, c) => audio.getChannelData(c)), sampleRate };
  } catch (error) {
    const name = file instanceof File ? file.name : "the file";
    throw new Error(`${name}: not an audio file, damaged, or of a format that this browser cannot decode`, {
      cause: error,
    });
  }
}

/**
 * The sample rate in the header of a WAV, FLAC or Ogg file; null for others. Browsers do not tell it, and convert
 * everything that they decode to a rate that must be chosen before.
 */
export function storedRate(file: Uint8Array): number | null {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const text = (at: number, length: number): string => String.fromCharCode(...file.subarray(at, at + length));
  const within = (rate: number): number | null => (rate >= 8000 && rate <= 96_000 ? rate : null); // for decoding
  if (text(0, 4) === "RIFF" && text(8, 4) === "WAVE") {
    for (let at = 12; at + 16 <= file.length; at += 8 + view.getUint32(at + 4, true) + (view.getUint32(at + 4, true) % 2)) {
      if (text(at, 4) === "fmt ") return within(view.getUint32(at + 12, true));
    }
  }
  if (text(0, 4) === "fLaC" && file.length >= 22) return within(view.getUint32(18) >>> 12);
  if (text(0, 4) === "OggS" && text(29, 6) === "vorbis" && file.length >= 44) return within(view.getUint32(40, true));
  return null;
}

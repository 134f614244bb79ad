/** A signal: one array of samples for each channel, all of the same length, full scale 1. */
export type Signal = Float32Array[];

export function silence(channels: number, length: number): Signal {
  return Array.from({ length: channels }, () => new Float32Array(length));
}

export function lengthOf(x: Signal): number {
  return x[0]?.length ?? 0;
}

/** Samples `start` to `end` of every channel, as views. */
export function part(x: Signal, start: number, end?: number): Signal {
  return x.map((row) => row.subarray(start, end));
}

/** Join signals in time. */
export function join(...parts: Signal[]): Signal {
  const first = parts[0] ?? [];
  const total = parts.reduce((sum, x) => sum + lengthOf(x), 0);
  return first.map((_, c) => {
    const row = new Float32Array(total);
    let at = 0;
    for (const x of parts) {
      row.set(x[c]!, at);
      at += x[c]!.length;
    }
    return row;
  });
}

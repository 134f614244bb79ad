const METADATA_PROPS = 14; // field of ModelProto; its entries have a key (1) and a value (2)

/** Read the metadata of an ONNX file, which ONNX Runtime does not show in the browser. */
export function readMetadata(file: Uint8Array): Map<string, string> {
  const text = new TextDecoder();
  const metadata = new Map<string, string>();
  try {
    for (const [field, entry] of fields(file)) {
      if (field !== METADATA_PROPS) continue;
      const pair = new Map([...fields(entry)].map(([key, value]) => [key, text.decode(value)]));
      metadata.set(pair.get(1) ?? "", pair.get(2) ?? "");
    }
  } catch (error) {
    throw new Error("not an ONNX file, or a damaged one", { cause: error });
  }
  return metadata;
}

/** The fields of a protobuf message that have bytes as their value. */
function* fields(message: Uint8Array): Generator<[field: number, value: Uint8Array]> {
  let at = 0;
  const varint = (): number => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = message[at++];
      if (byte === undefined) throw new RangeError("the message ends within a number");
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < message.length) {
    const tag = varint();
    const kind = tag % 8;
    if (kind === 0) varint();
    else if (kind === 1) at += 8;
    else if (kind === 5) at += 4;
    else if (kind === 2) {
      const size = varint();
      if (at + size > message.length) throw new RangeError("the message ends within a field");
      yield [Math.floor(tag / 8), message.subarray(at, at + size)];
      at += size;
    } else throw new RangeError(`unknown kind of field ${kind}`);
  }
}

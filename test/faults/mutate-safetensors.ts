import type { Mutant } from "./mutate-gguf.js";
import type { Random } from "./support.js";

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

const edges = [0, -0, 1, -1, 2, 3, 0.5, 31, 255, 65536, 2 ** 31 - 1, 2 ** 31, 2 ** 32, 2 ** 53 - 1, 2 ** 53, 1e19, 1e308, -(2 ** 31)];
const oddities: readonly Json[] = [null, true, "", "0", "F32", [], {}, [[]], "\u0000", "__proto__", "x".repeat(5000)];
const raw = ["9007199254740993", "1e400", "-0", "00", "1.", "NaN", "Infinity", "0x10", "\"\\ud800\"", "[".repeat(100), "tru", "//", "'a'", ""];

/** Every place in a JSON value that can be replaced: object and key, or array and index. */
function places(value: Json, found: { holder: Json[] | { [key: string]: Json }; key: string | number }[] = []): typeof found {
  if (typeof value !== "object" || value === null) return found;
  for (const key of Array.isArray(value) ? value.keys() : Object.keys(value)) {
    found.push({ holder: value, key });
    places((value as Record<string | number, Json>)[key]!, found);
  }
  return found;
}

/** JSON text that is odd in one place, or broken. */
export function mutateJson(text: string, random: Random): { text: string; what: string } {
  const value = JSON.parse(text) as Json, { holder, key } = random.pick(places(value)) as { holder: Record<string | number, Json>; key: string | number };
  const kind = random.below(8);
  if (kind === 0) {
    if (Array.isArray(holder)) holder.splice(key as number, 1);
    else delete holder[key];
    return { text: JSON.stringify(value), what: `no ${key}` };
  }
  if (kind === 1) {
    holder[key] = "@raw@";
    const by = random.pick(raw);
    return { text: JSON.stringify(value).replace("\"@raw@\"", () => by), what: `${key} is written ${by.slice(0, 12)}` };
  }
  if (kind === 2) {
    const at = random.below(text.length), byte = String.fromCharCode(random.below(128));
    return { text: text.slice(0, at) + byte + text.slice(at + random.below(2)), what: `a character at ${at}` };
  }
  if (kind === 3 && !Array.isArray(holder)) {
    holder[random.pick(["__proto__x", "constructor", "toString", "x".repeat(3000)])] = holder[key]!;
    return { text: JSON.stringify(value).replace("__proto__x", "__proto__"), what: `another name for ${key}` };
  }
  holder[key] = typeof holder[key] === "number" && kind > 3 ? (random.chance(0.6) ? random.pick(edges) : holder[key] + random.pick([-1, 1, 2])) : random.chance(0.5) ? random.pick(edges) : random.pick(oddities);
  return { text: JSON.stringify(value), what: `${key} is ${String(JSON.stringify(holder[key])).slice(0, 30)}` };
}

export interface SafetensorsSource {
  readonly header: string;
  readonly data: Buffer;
}

export function readSafetensors(bytes: Buffer): SafetensorsSource {
  const end = 8 + Number(bytes.readBigUInt64LE());
  return { header: bytes.toString("utf8", 8, end), data: bytes.subarray(end) };
}

function file(header: string, data: Buffer, length?: bigint): Buffer {
  const text = Buffer.from(header), size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt.asUintN(64, length ?? BigInt(text.length)));
  return Buffer.concat([size, text, data]);
}

interface Entry {
  dtype: string;
  shape: number[];
  data_offsets: [number, number];
}

type Mutation = (source: SafetensorsSource, header: Record<string, Entry>, names: readonly string[], random: Random) => Omit<Mutant, "reject">;

/** Each of these breaks the format for certain. */
const breaking: readonly Mutation[] = [
  ({ header, data }, _h, _n, random) => {
    const bytes = file(header, data), cut = random.chance(0.5) ? random.below(header.length) : bytes.length - 1 - random.below(data.length);
    return { bytes: bytes.subarray(0, cut), what: `cut to ${cut} bytes` };
  },
  ({ header, data }, _h, _n, random) => {
    const length = random.pick([0n, 1n, BigInt(header.length - 1), BigInt(header.length + data.length + 1), 100_000_001n, 1n << 31n, 1n << 32n, 1n << 53n, (1n << 63n) - 8n, (1n << 64n) - 8n, (1n << 64n) - 1n]);
    return { bytes: file(header, data, length), what: `a header of ${length} bytes` };
  },
  ({ header, data }) => ({ bytes: file(` ${header}`, data), what: "a space before the header" }),
  ({ header, data }, _h, _n, random) => ({ bytes: file(header, Buffer.concat([data, Buffer.alloc(1 + random.below(64))])), what: "bytes after the last tensor" }),
  ({ header, data }, _h, names, random) => {
    const name = JSON.stringify(random.pick(names)), at = header.indexOf(`${name}:`);
    return { bytes: file(`${header.slice(0, at)}${name}:{"dtype":"F32","shape":[0],"data_offsets":[0,0]},${header.slice(at)}`, data), what: `${name} twice` };
  },
  ({ data }, header, names, random) => {
    const name = random.pick(names), entry = header[name]!, by = random.pick([-4, -1, 1, 4, 2 ** 31, 2 ** 53 - 1 - entry.data_offsets[1]]);
    entry.data_offsets[random.below(2)]! += by;
    return { bytes: file(JSON.stringify(header), data), what: `offsets of ${name} by ${by}` };
  },
  ({ data }, header, names, random) => {
    const [a, b] = [random.pick(names), random.pick(names)];
    if (a === b || header[a]!.data_offsets[1] === header[a]!.data_offsets[0]) header[a]!.shape.push(3);
    else header[b] = { ...header[a]! };
    return { bytes: file(JSON.stringify(header), data), what: `${b} lies where ${a} does` };
  },
  ({ data }, header, names, random) => {
    const name = random.pick(names), { shape } = header[name]!;
    shape[random.below(shape.length)] = random.pick([0, 2 ** 31, 2 ** 32, 2 ** 53 - 1, 2 ** 60, -1, 0.5]);
    return { bytes: file(JSON.stringify(header), data), what: `shape of ${name}: ${shape.join()}` };
  },
  ({ data }, header, names, random) => {
    const name = random.pick(names);
    header[name]!.dtype = random.pick(["F64", "U8", "I16x", "", "f32", "F4"].filter((type) => type !== header[name]!.dtype));
    return { bytes: file(JSON.stringify(header), data), what: `dtype of ${name}: ${header[name]!.dtype}` };
  },
  ({ data }, header, names, random) => {
    const name = random.pick(names);
    delete header[name];
    return { bytes: file(JSON.stringify(header), data), what: `no ${name}: a hole` };
  },
];

/** The weights file alone: half of the mutants break the format for certain. */
export function mutateSafetensors(source: SafetensorsSource, random: Random): Mutant {
  if (random.chance(0.5)) {
    const header = JSON.parse(source.header) as Record<string, Entry>, names = Object.keys(header).filter((name) => name !== "__metadata__");
    return { ...random.pick(breaking)(source, header, names, random), reject: true };
  }
  if (random.chance(0.15)) {
    const data = Buffer.from(source.data), at = random.below(data.length), count = 1 + random.below(256);
    data.fill(random.pick([0, 0x7f, 0x80, 0xff]), at, Math.min(data.length, at + count));
    return { bytes: file(source.header, data), what: `${count} bytes of weights at ${at}`, reject: false };
  }
  const { text, what } = mutateJson(source.header, random);
  return { bytes: file(text, source.data), what, reject: false };
}

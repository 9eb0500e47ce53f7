import type { Random } from "./support.js";

/** A broken or odd file. `reject`: it breaks the format for certain, so that loading it must fail. */
export interface Mutant {
  readonly bytes: Buffer;
  readonly what: string;
  readonly reject: boolean;
}

/** A fixed-size number of the header. */
interface Field {
  readonly at: number;
  readonly size: number;
  /** What it is: "tensors", "keys", "length", "count", "type", "element type", "rank", "dim", "offset" or "value". */
  readonly role: string;
  readonly owner: string;
}

interface Span {
  readonly begin: number;
  readonly end: number;
  readonly name: string;
}

/** Where everything stands in a GGUF file that is in order; shares nothing with the package's reader. */
export interface GgufLayout {
  readonly fields: readonly Field[];
  readonly keys: readonly Span[];
  readonly tensors: readonly Span[];
  readonly strings: readonly Span[];
  readonly headerEnd: number;
  readonly dataStart: number;
}

const widths = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];

export function layoutOfGguf(bytes: Buffer): GgufLayout {
  const fields: Field[] = [], keys: Span[] = [], tensors: Span[] = [], strings: Span[] = [];
  let at = 24, alignment = 32;
  fields.push({ at: 8, size: 8, role: "tensors", owner: "" }, { at: 16, size: 8, role: "keys", owner: "" });
  const string = (owner: string): string => {
    const length = Number(bytes.readBigUInt64LE(at));
    fields.push({ at, size: 8, role: "length", owner });
    strings.push({ begin: at + 8, end: at + 8 + length, name: owner });
    at += 8 + length;
    return bytes.toString("utf8", at - length, at);
  };
  const value = (type: number, owner: string): void => {
    if (type === 8) {
      string(owner);
    } else if (type === 9) {
      const of = bytes.readUInt32LE(at), count = Number(bytes.readBigUInt64LE(at + 4));
      fields.push({ at, size: 4, role: "element type", owner }, { at: at + 4, size: 8, role: "count", owner });
      at += 12;
      for (let i = 0; i < count; i++) value(of, owner);
    } else {
      if (fields.length < 5000) fields.push({ at, size: widths[type]!, role: "value", owner });
      at += widths[type]!;
    }
  };
  for (let left = Number(bytes.readBigUInt64LE(16)); left > 0; left--) {
    const begin = at, name = string("key");
    fields.push({ at, size: 4, role: "type", owner: name });
    const type = bytes.readUInt32LE(at);
    at += 4;
    if (name === "general.alignment") alignment = bytes.readUInt32LE(at);
    value(type, name);
    keys.push({ begin, end: at, name });
  }
  for (let left = Number(bytes.readBigUInt64LE(8)); left > 0; left--) {
    const begin = at, name = string("tensor"), rank = bytes.readUInt32LE(at);
    fields.push({ at, size: 4, role: "rank", owner: name });
    at += 4;
    for (let i = 0; i < rank; i++, at += 8) fields.push({ at, size: 8, role: "dim", owner: name });
    fields.push({ at, size: 4, role: "tensor type", owner: name }, { at: at + 4, size: 8, role: "offset", owner: name });
    at += 12;
    tensors.push({ begin, end: at, name });
  }
  return { fields, keys, tensors, strings, headerEnd: at, dataStart: Math.ceil(at / alignment) * alignment };
}

const edges = [0n, 1n, 2n, 3n, 7n, 31n, 32n, 33n, 255n, 256n, 65535n, 65536n, (1n << 31n) - 1n, 1n << 31n, (1n << 32n) - 1n, 1n << 32n, (1n << 53n) - 1n, 1n << 53n, (1n << 53n) + 1n, (1n << 61n), (1n << 63n) - 1n, 1n << 63n, (1n << 64n) - 32n, (1n << 64n) - 1n];
const floats = [0, -0, NaN, Infinity, -Infinity, -1, 1e-45, 1e38, 3.4e38, -1e-30];

function put(bytes: Buffer, at: number, size: number, value: bigint): void {
  const wide = Buffer.alloc(8);
  wide.writeBigUInt64LE(BigInt.asUintN(64, value));
  wide.copy(bytes, at, 0, size);
}

function get(bytes: Buffer, { at, size }: Field): bigint {
  const wide = Buffer.alloc(8);
  bytes.copy(wide, 0, at, at + size);
  return wide.readBigUInt64LE();
}

/** The file with [begin, end) replaced; the tensor data keeps its alignment. */
function splice(bytes: Buffer, { headerEnd, dataStart }: GgufLayout, begin: number, end: number, by: Buffer): Buffer {
  const header = Buffer.concat([bytes.subarray(0, begin), by, bytes.subarray(end, headerEnd)]);
  return Buffer.concat([header, Buffer.alloc((32 - (header.length % 32)) % 32), bytes.subarray(dataStart)]);
}

type Mutation = (bytes: Buffer, layout: GgufLayout, random: Random) => Mutant;

/** Each of these breaks the format for certain. */
const breaking: readonly Mutation[] = [
  (bytes, layout, random) => {
    const at = random.below(layout.headerEnd), cut = random.chance(0.5) ? at : Math.max(0, bytes.length - 1 - random.below(bytes.length - layout.dataStart));
    return { bytes: bytes.subarray(0, cut), what: `cut to ${cut} bytes`, reject: true };
  },
  (bytes, layout, random) => {
    const field = random.pick(layout.fields.filter(({ role }) => role === "tensors" || role === "keys" || role === "length" || role === "count")), value = random.pick(edges.slice(13));
    put(bytes, field.at, field.size, value);
    return { bytes, what: `${field.role} of ${field.owner} is ${value}`, reject: true };
  },
  (bytes, layout, random) => {
    const field = random.pick(layout.fields.filter(({ role }) => role === "dim")), value = random.pick(edges.slice(11));
    put(bytes, field.at, field.size, value);
    return { bytes, what: `a dim of ${field.owner} is ${value}`, reject: true };
  },
  (bytes, layout, random) => {
    const field = random.pick(layout.fields.filter(({ role }) => role === "offset")), value = random.pick([1n, 7n, BigInt(bytes.length), ...edges.slice(11)]);
    put(bytes, field.at, field.size, value);
    return { bytes, what: `the offset of ${field.owner} is ${value}`, reject: true };
  },
  (bytes, layout, random) => {
    const fields = layout.fields.filter(({ role }) => role === "offset"), to = random.pick(fields), from = random.pick(fields.filter((field) => field !== to));
    put(bytes, to.at, 8, get(bytes, from));
    return { bytes, what: `${to.owner} lies where ${from.owner} does`, reject: true };
  },
  (bytes, layout, random) => {
    const { begin, end, name } = random.pick(layout.keys);
    put(bytes, 16, 8, BigInt(layout.keys.length + 1));
    return { bytes: splice(bytes, layout, begin, begin, Buffer.from(bytes.subarray(begin, end))), what: `${name} twice`, reject: true };
  },
  (bytes, layout, random) => {
    const { begin, end, name } = random.pick(layout.tensors);
    put(bytes, 8, 8, BigInt(layout.tensors.length + 1));
    return { bytes: splice(bytes, layout, begin, begin, Buffer.from(bytes.subarray(begin, end))), what: `tensor ${name} twice`, reject: true };
  },
  (bytes, layout, random) => {
    const { begin, end, name } = random.pick(layout.tensors.filter(({ name: tensor }) => tensor !== "rope_freqs.weight"));
    put(bytes, 8, 8, BigInt(layout.tensors.length - 1));
    return { bytes: splice(bytes, layout, begin, end, Buffer.alloc(0)), what: `no tensor ${name}`, reject: name !== "output.weight" };
  },
  (bytes, layout, random) => {
    const field = random.pick(layout.fields.filter(({ role }) => role === "type" || role === "element type" || role === "tensor type")), value = random.pick([13n, 14n, 99n, 255n, 1n << 31n, (1n << 32n) - 1n]);
    put(bytes, field.at, 4, field.role === "tensor type" ? value + 100n : value);
    return { bytes, what: `${field.role} ${value} of ${field.owner}`, reject: true };
  },
  (bytes, layout, random) => {
    const alignment = random.pick([0, 3, 24, 65537, 2 ** 31, 2 ** 32 - 1]), key = Buffer.from("general.alignment"), entry = Buffer.alloc(8 + key.length + 8);
    entry.writeBigUInt64LE(BigInt(key.length));
    key.copy(entry, 8);
    entry.writeUInt32LE(4, 8 + key.length);
    entry.writeUInt32LE(alignment, 12 + key.length);
    put(bytes, 16, 8, BigInt(layout.keys.length + 1));
    return { bytes: splice(bytes, layout, 24, 24, entry), what: `alignment ${alignment}`, reject: true };
  },
  (bytes, _layout, random) => {
    const at = random.below(8);
    bytes[at]! ^= 1 << random.below(8);
    return { bytes, what: `magic or version byte ${at}`, reject: at >= 4 ? bytes.readUInt32LE(4) !== 2 : true };
  },
];

/** These may give a file that still makes sense. */
const odd: readonly Mutation[] = [
  (bytes, layout, random) => {
    const field = random.pick(layout.fields.filter(({ role }) => role !== "value")), before = get(bytes, field), value = random.chance(0.5) ? random.pick(edges) : before + BigInt(random.pick([-2, -1, 1, 2, 256]));
    put(bytes, field.at, field.size, value);
    return { bytes, what: `${field.role} of ${field.owner}: ${value}`, reject: false };
  },
  (bytes, layout, random) => {
    const values = layout.fields.filter(({ role, owner }) => role === "value" && !owner.startsWith("tokenizer.")), field = random.pick(values);
    if (field.size === 4 && random.chance(0.4)) bytes.writeFloatLE(random.pick(floats), field.at);
    else put(bytes, field.at, field.size, random.chance(0.6) ? random.pick(edges) : get(bytes, field) + BigInt(random.pick([-1, 1, 2, 16])));
    return { bytes, what: `${field.owner} has the bits ${get(bytes, field)}`, reject: false };
  },
  (bytes, layout, random) => {
    const field = random.pick(layout.fields.filter(({ role }) => role === "value"));
    put(bytes, field.at, field.size, random.pick(edges));
    return { bytes, what: `a value of ${field.owner}: ${get(bytes, field)}`, reject: false };
  },
  (bytes, layout, random) => {
    const field = random.pick(layout.fields.filter(({ role }) => role === "type" || role === "element type"));
    put(bytes, field.at, 4, BigInt(random.below(13)));
    return { bytes, what: `${field.role} ${get(bytes, field)} of ${field.owner}`, reject: false };
  },
  (bytes, layout, random) => {
    const field = random.pick(layout.fields.filter(({ role }) => role === "tensor type"));
    put(bytes, field.at, 4, BigInt(random.below(42)));
    return { bytes, what: `type ${get(bytes, field)} of tensor ${field.owner}`, reject: false };
  },
  (bytes, layout, random) => {
    const { begin, end, name } = random.pick(layout.keys);
    put(bytes, 16, 8, BigInt(layout.keys.length - 1));
    return { bytes: splice(bytes, layout, begin, end, Buffer.alloc(0)), what: `no key ${name}`, reject: false };
  },
  (bytes, layout, random) => {
    const { begin, end, name } = random.pick(layout.strings.filter((span) => span.end > span.begin));
    for (let i = begin; i < end; i++) if (i === begin || random.chance(0.3)) bytes[i] = random.pick([0, 0x2e, 0x3c, 0x41, 0x7f, 0x80, 0xc0, 0xff]);
    return { bytes, what: `other bytes in the string ${name}`, reject: false };
  },
  (bytes, layout, random) => {
    const { begin, end } = random.pick(layout.strings), by = Buffer.alloc(random.below(3000), random.pick(["{", "{{", "a", "{% for i in range(9) %}", "<0x", "\u0000", "é", " "]));
    put(bytes, begin - 8, 8, BigInt(by.length));
    return { bytes: splice(bytes, layout, begin, end, by), what: `a string of ${by.length} bytes`, reject: false };
  },
  (bytes, layout, random) => {
    const spans = random.chance(0.5) ? layout.keys : layout.tensors, [a, b] = [random.pick(spans), random.pick(spans)].sort((x, y) => x.begin - y.begin) as [Span, Span];
    if (a === b) return { bytes, what: "nothing", reject: false };
    const order = [bytes.subarray(b.begin, b.end), bytes.subarray(a.end, b.begin), bytes.subarray(a.begin, a.end)];
    return { bytes: splice(bytes, layout, a.begin, b.end, Buffer.concat(order)), what: `${a.name} and ${b.name} change places`, reject: false };
  },
  (bytes, layout, random) => {
    for (let i = random.below(6); i >= 0; i--) bytes[random.below(layout.headerEnd)] = random.below(256);
    return { bytes, what: "random header bytes", reject: false };
  },
  (bytes, layout, random) => {
    const at = layout.dataStart + random.below(bytes.length - layout.dataStart), count = 1 + random.below(512);
    bytes.fill(random.pick([0, 0x7f, 0x80, 0xff, 0x7c]), at, Math.min(bytes.length, at + count));
    return { bytes, what: `${count} bytes of weights at ${at}`, reject: false };
  },
  (bytes, layout, random) => {
    const at = random.below(layout.headerEnd), count = 1 + random.below(64);
    return { bytes: random.chance(0.5) ? Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + count)]) : Buffer.concat([bytes.subarray(0, at), bytes.subarray(at, at + count), bytes.subarray(at)]), what: `${count} bytes at ${at} gone or twice`, reject: false };
  },
];

/** A mutant of a file in order: two of five break the format for certain, the others are odd in one to three ways. */
export function mutateGguf(original: Buffer, layout: GgufLayout, random: Random): Mutant {
  if (random.chance(0.4)) return random.pick(breaking)(Buffer.from(original), layout, random);
  let mutant: Mutant = { bytes: Buffer.from(original), what: "", reject: false };
  const fixed = odd.slice(0, 5);
  for (let i = random.below(3); i > 0; i--) mutant = join(mutant, random.pick(fixed)(mutant.bytes, layout, random));
  return join(mutant, random.pick(odd)(mutant.bytes, layout, random));
}

function join(before: Mutant, after: Mutant): Mutant {
  return { ...after, what: before.what === "" ? after.what : `${before.what}; ${after.what}` };
}

import { gguf } from "@huggingface/gguf";
import { statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { ModelFormatError } from "#lib/errors.js";
import type { ModelFile } from "#lib/models/file.js";
import { openGguf } from "#lib/models/gguf.js";
import { type GgufToWrite, type TensorToWrite, writeGguf } from "../support/gguf-writer.js";
import { modelPath, scratch, skipWithout, SMOLLM2 } from "../support/paths.js";
import fc from "../support/property.js";

const q8Row = (rows: number): Uint8Array => Uint8Array.from({ length: rows * 34 }, (_, index) => index & 255);
const small: GgufToWrite = {
  metadata: {
    "general.architecture": "llama",
    "a.u8": { type: "u8", value: 200 }, "a.i8": { type: "i8", value: -3 }, "a.u16": { type: "u16", value: 60000 }, "a.i16": { type: "i16", value: -300 },
    "a.u32": 4_000_000_000, "a.i32": -5, "a.f32": 0.25, "a.f64": { type: "f64", value: 1e300 }, "a.bool": true, "a.string": "naïve 日本 \u0000 x",
    "a.u64": { type: "u64", value: 7n }, "a.big": { type: "u64", value: 2n ** 63n }, "a.i64": { type: "i64", value: -9n },
    "a.bytes": { type: "array", of: "u8", value: [1, 2, 255] }, "a.ints": new Int32Array([1, -2]), "a.floats": new Float32Array([0.5, -1]),
    "a.flags": [true, false], "a.few": ["one", "", "drei"], "a.many": Array.from({ length: 1000 }, (_, index) => "x".repeat(index % 7) + index),
    "a.longs": { type: "array", of: "i64", value: [1n, -2n] }, "a.none": { type: "array", of: "string", value: [] },
    "a.nested": { type: "array", of: "array", value: [{ type: "array", of: "i32", value: [1, 2] }, { type: "array", of: "string", value: ["p"] }] },
    "__proto__x": "key", constructor: "fine",
  },
  tensors: [
    { name: "token_embd.weight", shape: [3, 64], type: "q8_0", data: q8Row(6) },
    { name: "__proto__", shape: [5], type: "f32", data: new Float32Array([1, 2, 3, 4, 5]) },
    { name: "b.half", shape: [2, 1, 3], type: "f16", data: new Float32Array(6) },
  ],
};

t.test("reads what an independent writer wrote", async (t) => {
  const { write } = scratch(t);
  const file = await openGguf(write("small.gguf", writeGguf(small)));
  const { metadata, tensors } = file;
  const raw = (key: string): unknown => metadata.raw(key);
  t.same(["u8", "i8", "u16", "i16", "u32", "i32", "f32", "f64", "bool", "u64", "big", "i64"].map((key) => raw(`a.${key}`)),
    [200, -3, 60000, -300, 4_000_000_000, -5, 0.25, 1e300, true, 7, 2n ** 63n, -9]);
  t.equal(raw("a.string"), "naïve 日本 \u0000 x");
  t.same(raw("a.bytes"), new Uint8Array([1, 2, 255]));
  t.same(metadata.numbers("a.bytes"), new Int32Array([1, 2, 255]));
  t.same(metadata.numbers("a.ints"), new Int32Array([1, -2]));
  t.same(metadata.numbers("a.floats"), new Float32Array([0.5, -1]));
  t.same(raw("a.flags"), [true, false]);
  t.same(metadata.strings("a.few"), ["one", "", "drei"]);
  t.same(metadata.strings("a.many"), (small.metadata as Record<string, unknown>)["a.many"]);
  t.same(raw("a.longs"), [1, -2]);
  t.same(raw("a.nested"), [new Int32Array([1, 2]), ["p"]]);
  t.equal(raw("constructor"), "fine");
  t.equal(raw("toString"), undefined);
  t.same([...tensors.keys()], ["token_embd.weight", "__proto__", "b.half"]);
  const embedding = tensors.get("token_embd.weight")!;
  t.same([embedding.type, embedding.shape, embedding.byteLength], ["q8_0", [3, 64], 204]);
  t.same(tensors.get("b.half")!.shape, [2, 1, 3]);
  t.equal(tensors.get("__proto__")!.offset % 32, 0);
});

t.test("typed accessors name the key and what came", async (t) => {
  const { write } = scratch(t);
  const { metadata } = await openGguf(write("small.gguf", writeGguf({
    metadata: { ...(small.metadata as Record<string, never>), nan: { type: "f32", value: Number.NaN }, nans: new Float32Array([Number.NaN]) },
  })));
  const refused: [() => unknown, RegExp][] = [
    [() => metadata.string("a.u8"), /a string for a\.u8 but received 200 of type number/],
    [() => metadata.number("nan"), /a finite number for nan/],
    [() => metadata.numbers("nans"), /finite numbers for nans/],
    [() => metadata.number("a.big"), /a\.big but received 9223372036854775808 of type bigint/],
    [() => metadata.integer("a.i32"), /an integer in 0 … 2\^31 − 1 for a\.i32/],
    [() => metadata.integer("a.u32"), /a\.u32/],
    [() => metadata.integer("a.f32"), /a\.f32/],
    [() => metadata.boolean("a.string"), /a boolean for a\.string/],
    [() => metadata.strings("a.flags"), /an array of strings for a\.flags/],
    [() => metadata.string("missing"), /missing but the model's metadata has no such key/],
  ];
  for (const [read, message] of refused) t.throws(read, { name: "ModelFormatError", message });
  t.equal(metadata.integer("missing", 3), 3);
  t.equal(metadata.strings("missing"), undefined);
});

/** A file by hand: what a writer would not write. */
function handmade(tensorCount: bigint, keyCount: bigint, rest: Uint8Array = new Uint8Array(0), version = 3): Uint8Array {
  const start = Buffer.alloc(24);
  start.write("GGUF");
  start.writeUInt32LE(version, 4);
  start.writeBigUInt64LE(tensorCount, 8);
  start.writeBigUInt64LE(keyCount, 16);
  return new Uint8Array(Buffer.concat([start, rest]));
}

/** One key "k" with an array of by default 2^63 elements, in 49 bytes. */
function hugeArray(type: number, count = 2n ** 63n): Uint8Array {
  const rest = Buffer.alloc(8 + 1 + 4 + 12);
  rest.writeBigUInt64LE(1n);
  rest.write("k", 8);
  rest.writeUInt32LE(9, 9);
  rest.writeUInt32LE(type, 13);
  rest.writeBigUInt64LE(count, 17);
  return handmade(0n, 1n, rest);
}

const tensor = (change: Partial<TensorToWrite> = {}): TensorToWrite => ({ name: "w", shape: [2, 32], type: "q8_0", data: q8Row(2), ...change });
const one = (change: Partial<TensorToWrite>): Uint8Array => writeGguf({ tensors: [tensor(change)] });
const cut = (bytes: Uint8Array, length: number): Uint8Array => bytes.subarray(0, length);

const broken: [string, Uint8Array, RegExp][] = [
  ["no header", new Uint8Array(10), /at least 24 bytes/],
  ["another magic", Buffer.concat([Buffer.from("GGML"), new Uint8Array(40)]), /begins with the letters GGUF/],
  ["version 1", handmade(0n, 0n, new Uint8Array(8), 1), /version 2 or 3 but received 1/],
  ["big-endian", handmade(0n, 0n, new Uint8Array(8), 0x0300_0000), /big-endian/],
  ["2^63 tensors", handmade(2n ** 63n, 0n), /below 2\^53/],
  ["2^40 tensors", handmade(2n ** 40n, 0n), /at most 4194304 keys and tensors/],
  ["more tensors than bytes", handmade(2n ** 20n, 0n), /the tensor list to fit/],
  ["more keys than bytes", handmade(0n, 2n ** 20n), /the metadata to fit/],
  ["an array of 2^63 bytes", hugeArray(0), /below 2\^53/],
  ["an array of 2^63 strings", hugeArray(8), /below 2\^53/],
  ["an array of 2^63 arrays", hugeArray(9), /below 2\^53/],
  ["an array of 2^52 strings", hugeArray(8, 2n ** 52n), /the array k to fit/],
  ["an unknown value type", hugeArray(13, 1n), /value type in 0 … 12/],
  ["a key twice", writeGguf({ metadata: [["k", 1], ["k", 2]] }), /metadata key once but k/],
  ["alignment 3", writeGguf({ alignment: 3 }), /power of two/],
  ["alignment 0", writeGguf({ metadata: { "general.alignment": 0 } }), /power of two/],
  ["alignment 2^17", writeGguf({ metadata: { "general.alignment": 1 << 17 } }), /power of two/],
  ["alignment of text", writeGguf({ metadata: { "general.alignment": "32" } }), /power of two/],
  ["a type that is not read", one({ type: 16 }), /received IQ2_XXS \(16\)/],
  ["an unknown type", one({ type: 99 }), /unknown type \(99\)/],
  ["rows that are no whole blocks", one({ shape: [2, 33] }), /multiple of 32 elements for q8_0 but received 33/],
  ["no dimension", one({ shape: [] }), /1 to 4 dimensions but received 0/],
  ["five dimensions", one({ shape: [1, 1, 1, 1, 32] }), /1 to 4 dimensions but received 5/],
  ["a dimension of 0", one({ shape: [0, 32] }), /dimensions of 1 or more/],
  ["exabytes", one({ shape: [2 ** 30, 2 ** 30, 32] }), /fewer than 2\^53 bytes/],
  ["a product that wraps in 64 bits", one({ shape: [2 ** 32, 2 ** 32, 32], type: "f32" }), /fewer than 2\^53 bytes/],
  ["an offset that is not aligned", one({ offset: 8 }), /multiple of 32 but received 8/],
  ["an offset beyond the end", one({ offset: 1 << 20 }), /within the file/],
  ["an offset near 2^53", one({ offset: 2n ** 53n - 32n }), /within the file/],
  ["an offset near 2^64", one({ offset: 2n ** 64n - 32n }), /below 2\^53/],
  ["a tensor twice", writeGguf({ tensors: [tensor(), tensor()] }), /tensor once but its name/],
  ["overlapping tensors", writeGguf({ tensors: [tensor(), tensor({ name: "v", offset: 32 })] }), /begins inside w/],
  ["a name without letters", one({ name: "" }), /a name for a tensor/],
  ["a name of 65 bytes", one({ name: "n".repeat(65) }), /at most 64 bytes/],
  ["missing weights", cut(writeGguf({ tensors: [tensor()] }), writeGguf({ tensors: [tensor()] }).length - 64), /within the file/],
];

t.test("refuses broken files with a ModelFormatError that says where", async (t) => {
  const { write } = scratch(t);
  for (const [what, bytes, message] of broken) {
    const started = performance.now();
    const error = await openGguf(write("broken.gguf", bytes)).then(() => undefined, (cause: unknown) => cause);
    t.ok(error instanceof ModelFormatError, what);
    t.match((error as Error)?.message, message, what);
    t.equal((error as ModelFormatError)?.code, "TL_MODEL_FORMAT");
    t.ok((error as ModelFormatError)?.offset !== undefined || (error as ModelFormatError)?.tensor !== undefined, `${what}: says where`);
    t.ok(performance.now() - started < 1000, `${what}: at once`);
  }
  const flag = Buffer.from(writeGguf({ metadata: { flag: true } }));
  flag[24 + 8 + 4 + 4] = 2;
  await t.rejects(openGguf(write("flag.gguf", flag)), { name: "ModelFormatError", message: /0 or 1 for the boolean flag/ });
  await t.rejects(openGguf(join(t.testdirName, "nothing.gguf")), { name: "ModelFormatError", message: /cannot be read/ });
  await t.rejects(openGguf(write("folder/x", "").slice(0, -2)), { name: "ModelFormatError", message: /no regular file/ });
  await t.rejects(openGguf(7 as never), { name: "ArgumentError" });
});

/** What every opened file must satisfy, whatever its bytes were. */
function consistent(file: ModelFile, size: number): boolean {
  return [...file.tensors.values()].every(({ offset, byteLength, shape }) =>
    Number.isSafeInteger(offset) && byteLength > 0 && offset + byteLength <= size && shape.every((dimension) => Number.isSafeInteger(dimension) && dimension > 0));
}

t.test("mutated files load consistently or are refused", async (t) => {
  const { path } = scratch(t);
  const bytes = writeGguf(small);
  const interesting = fc.constantFrom(0, 1, 7, 8, 9, 0x7f, 0x80, 0xff);
  const edit = fc.record({ at: fc.nat(bytes.length - 1), value: fc.oneof(interesting, fc.nat(255)), width: fc.constantFrom(1, 1, 4, 8) });
  await fc.assert(fc.asyncProperty(fc.array(edit, { minLength: 1, maxLength: 6 }), fc.option(fc.nat(bytes.length), { freq: 4 }), async (edits, length) => {
    const mutant = Uint8Array.from(bytes);
    for (const { at, value, width } of edits) mutant.fill(value, at, at + width);
    const file = join(path, "mutant.gguf");
    writeFileSync(file, length === null ? mutant : mutant.subarray(0, length));
    const started = performance.now();
    try {
      if (!consistent(await openGguf(file), statSync(file).size)) return false;
    } catch (error) {
      if (!(error instanceof ModelFormatError) || !(error.offset !== undefined || error.tensor !== undefined)) throw error;
    }
    return performance.now() - started < 1000;
  }), { numRuns: 1500 });
});

t.test("split models", async (t) => {
  const { path, write } = scratch(t);
  const part = (number: number, count: number, tensors: TensorToWrite[], more: object = {}): Uint8Array =>
    writeGguf({ metadata: { "split.no": { type: "u16", value: number }, "split.count": { type: "u16", value: count }, "split.tensors.count": 3, ...more }, tensors });
  write("m-00001-of-00002.gguf", part(0, 2, [tensor()], { "general.name": "first" }));
  const second = write("m-00002-of-00002.gguf", part(1, 2, [tensor({ name: "a" }), tensor({ name: "b" })]));
  for (const name of ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]) {
    const file = await openGguf(join(path, name));
    t.same([...file.tensors.keys()], ["w", "a", "b"]);
    t.equal(file.tensors.get("b")!.file, second);
    t.equal(file.metadata.string("general.name"), "first");
  }
  write("other.gguf", part(0, 2, [tensor()]));
  await t.rejects(openGguf(join(path, "other.gguf")), { message: /a name like model-00001-of-00002\.gguf/ });
  const refuse = async (bytes: Uint8Array, message: RegExp): Promise<void> => {
    write("m-00002-of-00002.gguf", bytes);
    await t.rejects(openGguf(join(path, "m-00001-of-00002.gguf")), { name: "ModelFormatError", message });
  };
  await refuse(part(1, 3, [tensor({ name: "a" })]), /part 1 of 2 but the file says/);
  await refuse(part(0, 2, [tensor({ name: "a" })]), /part 1 of 2 but the file says/);
  await refuse(part(1, 2, [tensor()]), /two parts/);
  await refuse(part(1, 2, [tensor({ name: "a" })]), /3 tensors in the parts of the model but found 2/);
  write("n-00001-of-00002.gguf", part(0, 2, [tensor()]));
  await t.rejects(openGguf(join(path, "n-00001-of-00002.gguf")), { name: "ModelFormatError", message: /cannot be read/ });
});

t.test("obeys a signal", async (t) => {
  const { write } = scratch(t);
  const file = write("small.gguf", writeGguf({ metadata: { many: Array.from({ length: 300_000 }, (_, index) => `token ${index}`) } }));
  await t.rejects(openGguf(file, { signal: AbortSignal.abort() }), { name: "AbortError" });
  const controller = new AbortController();
  setImmediate(() => controller.abort(new Error("enough")));
  await t.rejects(openGguf(file, { signal: controller.signal }), { name: "AbortError", cause: { message: "enough" } });
});

const smollm2 = modelPath(SMOLLM2);
t.test("agrees with @huggingface/gguf on a real model", { skip: skipWithout({ [SMOLLM2]: smollm2 }) }, async (t) => {
  let turns = 0;
  const clock = setInterval(() => turns++, 1);
  const file = await openGguf(smollm2!);
  clearInterval(clock);
  t.ok(turns > 0, "other work runs while the header is read");
  const { metadata, tensorInfos } = await gguf(smollm2!, { allowLocalFile: true });
  for (const [key, value] of Object.entries(metadata)) {
    if (["version", "tensor_count", "kv_count"].includes(key)) continue;
    const mine = file.metadata.raw(key);
    t.same(ArrayBuffer.isView(mine) ? Array.from(mine as never) : mine, typeof value === "bigint" ? Number(value) : value, key);
  }
  t.equal([...file.metadata.keys()].length, Number(metadata.kv_count));
  t.equal(file.tensors.size, tensorInfos.length);
  const names = new Map([[0, "f32"], [3, "q4_1"], [8, "q8_0"]]);
  const start = Math.min(...[...file.tensors.values()].map(({ offset }) => offset));
  for (const info of tensorInfos) {
    const mine = file.tensors.get(info.name)!;
    t.same([mine.type, [...mine.shape].reverse(), mine.offset - start], [names.get(info.dtype as number), info.shape.map(Number), Number(info.offset)], info.name);
  }
});

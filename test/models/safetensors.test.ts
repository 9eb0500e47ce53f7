import { mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { loadModel } from "tokenloom";
import { ModelFormatError } from "#lib/errors.js";
import { openModel } from "#lib/models/open.js";
import { openSafetensors } from "#lib/models/safetensors.js";
import { writeGguf } from "../support/gguf-writer.js";
import { modelPath, scratch, skipWithout } from "../support/paths.js";
import fc from "../support/property.js";
import { joinSafetensors, writeSafetensors } from "../support/safetensors-writer.js";

const floats = new Float32Array([1, -2, 0.5, 3]);
const small = writeSafetensors([
  { name: "a", dtype: "F32", shape: [2, 2], data: floats },
  { name: "__proto__", dtype: "BF16", shape: [4], data: floats },
  { name: "h", dtype: "F16", shape: [1, 4], data: floats },
  { name: "ids", dtype: "I64", shape: [2], data: new Uint8Array(16) },
  { name: "index", dtype: "I32", shape: [3], data: new Uint8Array(12) },
  { name: "scalar", dtype: "F32", shape: [], data: new Float32Array([7]) },
  { name: "empty", dtype: "F32", shape: [0, 3], data: new Uint8Array(0) },
], { format: "pt" });

t.test("reads what an independent writer wrote", async (t) => {
  const { path, write } = scratch(t);
  write("model.safetensors", small);
  write("config.json", `{"model_type": "llama", "hidden_size": 64, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "__proto__": 1},
    "text_config": {"hidden_size": 128, "layers": [1, 2]}, "eps": 1e-05, "none": null, "max": 1000000000000000019884624838656, "tie": true, "a.b": "plain"}`);
  for (const given of [path, join(path, "model.safetensors")]) {
    const file = await openSafetensors(given);
    t.equal(file.format, "safetensors");
    t.same([...file.tensors.values()].map(({ name, type, shape, byteLength }) => [name, type, shape, byteLength]), [
      ["a", "f32", [2, 2], 16], ["__proto__", "bf16", [4], 8], ["h", "f16", [1, 4], 8], ["index", "i32", [3], 12], ["scalar", "f32", [], 4], ["empty", "f32", [0, 3], 0],
    ]);
    t.same([...file.skipped], [["ids", "I64"]]);
    t.equal(file.tensors.get("index")!.offset + 12 + 4, small.length);
    const { metadata } = file;
    t.equal(metadata.integer("hidden_size"), 64);
    t.equal(metadata.integer("text_config.hidden_size"), 128);
    t.same(metadata.numbers("text_config.layers"), [1, 2]);
    t.equal(metadata.number("eps"), 1e-5);
    t.equal(metadata.number("max"), 1e30);
    t.equal(metadata.boolean("tie"), true);
    t.equal(metadata.string("a.b"), "plain");
    t.equal(metadata.has("none"), false);
    t.equal(metadata.integer("none", 5), 5);
    const scaling = metadata.raw("rope_scaling") as Record<string, unknown>;
    t.same([scaling["rope_type"], scaling["factor"], Object.keys(scaling)], ["llama3", 8, ["rope_type", "factor", "__proto__"]]);
    t.equal(metadata.raw("toString"), undefined);
    t.equal(metadata.raw("rope_scaling.constructor"), undefined);
    t.throws(() => metadata.string("hidden_size"), { name: "ModelFormatError", message: /a string for hidden_size but received 64/ });
  }
});

const entry = (dtype: string, shape: string, offsets: string): string => `{"dtype":"${dtype}","shape":${shape},"data_offsets":${offsets}}`;
const data = new Uint8Array(16);
const one = (shape: string, offsets: string, dtype = "F32"): Uint8Array => joinSafetensors(`{"w":${entry(dtype, shape, offsets)}}`, data);

const broken: [string, Uint8Array, RegExp][] = [
  ["no header", new Uint8Array(5), /header/],
  ["a header of 2^63 bytes", Uint8Array.from([0, 0, 0, 0, 0, 0, 0, 128, 123]), /header of 2 …/],
  ["a header longer than the file", Uint8Array.from([99, 0, 0, 0, 0, 0, 0, 0, 123, 125]), /header of 99 bytes/],
  ["a header that begins with a space", joinSafetensors(" {}", new Uint8Array(0)), /begins with \{/],
  ["a header that begins with [", joinSafetensors("[]", new Uint8Array(0)), /begins with \{/],
  ["JSON that ends early", joinSafetensors('{"w":', data), /JSON/],
  ["something after the JSON", joinSafetensors("{} {}", new Uint8Array(0)), /nothing after/],
  ["a trailing comma", joinSafetensors('{"w":1,}', data), /key in double quotes/],
  ["bytes that are no UTF-8", joinSafetensors("{}", new Uint8Array(0)).map((byte, index) => (index === 10 ? 0xff : byte)), /UTF-8/],
  ["a tensor twice", joinSafetensors(`{"w":${entry("F32", "[4]", "[0,16]")},"w":${entry("F32", "[4]", "[0,16]")}}`, data), /key once but "w"/],
  ["a tensor twice, escaped", joinSafetensors(`{"w":${entry("F32", "[4]", "[0,16]")},"\\u0077":${entry("F32", "[4]", "[0,16]")}}`, data), /key once but "w"/],
  ["a dtype twice", joinSafetensors('{"w":{"dtype":"F32","dtype":"F16","shape":[4],"data_offsets":[0,16]}}', data), /key once but "dtype"/],
  ["an unknown dtype", one("[4]", "[0,16]", "F99"), /known dtype but received F99/],
  ["no shape", joinSafetensors('{"w":{"dtype":"F32","data_offsets":[0,16]}}', data), /sizes for shape/],
  ["a negative dimension", one("[-4]", "[0,16]"), /sizes for shape/],
  ["a fraction", one("[4.5]", "[0,16]"), /sizes for shape/],
  ["2^53", one("[9007199254740992]", "[0,16]"), /below 2\^53/],
  ["a product above 2^53", one("[4294967296,4294967296]", "[0,16]"), /below 2\^53/],
  ["other sizes than the shape's", one("[3]", "[0,16]"), /12 bytes for F32/],
  ["an end before the begin", one("[4]", "[16,0]"), /data_offsets/],
  ["three offsets", one("[4]", "[0,8,16]"), /two sizes/],
  ["a hole", joinSafetensors(`{"w":${entry("F32", "[1]", "[0,4]")},"v":${entry("F32", "[2]", "[8,16]")}}`, data), /begin at 4/],
  ["an overlap", joinSafetensors(`{"w":${entry("F32", "[2]", "[0,8]")},"v":${entry("F32", "[3]", "[4,16]")}}`, data), /begin at 8/],
  ["bytes after the last tensor", one("[2]", "[0,8]"), /8 bytes of data/],
  ["missing bytes", one("[8]", "[0,32]"), /32 bytes of data/],
  ["metadata that are no strings", joinSafetensors('{"__metadata__":{"a":1}}', new Uint8Array(0)), /__metadata__/],
  ["deep nesting", joinSafetensors(`{"w":${"[".repeat(500)}${"]".repeat(500)}}`, new Uint8Array(0)), /nested/],
  ["a list for a tensor", joinSafetensors('{"w":[]}', new Uint8Array(0)), /an object with dtype/],
];

t.test("refuses broken files", async (t) => {
  const { write } = scratch(t);
  for (const [what, bytes, message] of broken) {
    const error = await openSafetensors(write("broken.safetensors", bytes)).then(() => undefined, (cause: unknown) => cause);
    t.ok(error instanceof ModelFormatError, what);
    t.match((error as Error)?.message, message, what);
    t.ok((error as ModelFormatError)?.offset !== undefined || (error as ModelFormatError)?.tensor !== undefined || what.includes("metadata"), `${what}: says where`);
  }
});

t.test("mutated files load consistently or are refused", async (t) => {
  const { path } = scratch(t);
  const file = join(path, "mutant.safetensors");
  const edit = fc.record({ at: fc.nat(small.length - 1), value: fc.oneof(fc.constantFrom(...Buffer.from('0123456789{}[]",:\\ FI')), fc.nat(255)) });
  await fc.assert(fc.asyncProperty(fc.array(edit, { minLength: 1, maxLength: 4 }), fc.option(fc.nat(small.length), { freq: 5 }), async (edits, length) => {
    const mutant = Uint8Array.from(small);
    for (const { at, value } of edits) mutant[at] = value;
    const bytes = length === null ? mutant : mutant.subarray(0, length);
    writeFileSync(file, bytes);
    try {
      const { tensors } = await openSafetensors(file);
      return [...tensors.values()].every(({ offset, byteLength }) => Number.isSafeInteger(offset) && offset >= 10 && offset + byteLength <= bytes.length);
    } catch (error) {
      if (!(error instanceof ModelFormatError)) throw error;
      return true;
    }
  }), { numRuns: 1500 });
});

t.test("shards stay in the model's folder", async (t) => {
  const { path, write } = scratch(t);
  const shard = (name: string): Uint8Array => writeSafetensors([{ name, dtype: "F32", shape: [4], data: floats }]);
  const index = (map: Record<string, string>): void => void write("m/model.safetensors.index.json", JSON.stringify({ metadata: { total_size: 32 }, weight_map: map }));
  write("m/model-1.safetensors", shard("a"));
  const second = write("m/parts/model-2.safetensors", shard("b"));
  write("outside.safetensors", shard("b"));
  index({ a: "model-1.safetensors", b: "parts/model-2.safetensors" });
  const folder = join(path, "m");
  const { tensors } = await openModel(folder);
  t.same([...tensors.keys()], ["a", "b"]);
  t.equal(tensors.get("b")!.file, second);
  t.same([...(await openModel(join(folder, "model.safetensors.index.json"))).tensors.keys()], ["a", "b"]);
  symlinkSync(join(path, "outside.safetensors"), join(folder, "link.safetensors"));
  symlinkSync(path, join(folder, "up"));
  for (const outside of ["../outside.safetensors", join(path, "outside.safetensors"), "parts/../../outside.safetensors", "link.safetensors", "up/outside.safetensors", "", "C:\\x", "..\\outside.safetensors", "a\0b"]) {
    index({ a: "model-1.safetensors", b: outside });
    await t.rejects(openModel(folder), { name: "ModelFormatError", message: /inside of the model's folder/ }, JSON.stringify(outside));
  }
  index({ a: "model-1.safetensors", b: "missing.safetensors" });
  await t.rejects(openModel(folder), { message: /missing\.safetensors, which the index names/ });
  index({ a: "model-1.safetensors", b: "model-1.safetensors" });
  await t.rejects(openModel(folder), { message: /where weight_map says it is/ });
  write("m/again.safetensors", shard("a"));
  index({ a: "model-1.safetensors", b: "again.safetensors" });
  await t.rejects(openModel(folder), { message: /two files of the model/ });

  // The hub's cache: links from a snapshot to blobs of the same repository.
  write("models--x--y/blobs/0123", shard("a"));
  mkdirSync(join(path, "models--x--y/snapshots/rev"), { recursive: true });
  symlinkSync("../../blobs/0123", join(path, "models--x--y/snapshots/rev/part.safetensors"));
  write("models--x--y/snapshots/rev/model.safetensors.index.json", '{"weight_map":{"a":"part.safetensors"}}');
  t.same([...(await openModel(join(path, "models--x--y/snapshots/rev"))).tensors.keys()], ["a"]);
});

t.test("openModel recognises models by content and says what else it was given", async (t) => {
  const { path, write } = scratch(t);
  t.equal((await openModel(write("x.bin", writeGguf({})))).format, "gguf");
  t.equal((await openModel(write("y.bin", small))).format, "safetensors");
  t.equal((await openModel(write("one/any.gguf", writeGguf({})).replace("/any.gguf", ""))).format, "gguf");
  const refused: [string, string | Uint8Array, RegExp][] = [
    ["empty", "", /an empty file/], ["text", "Once upon a time there was no model at all.", /a text file/], ["pointer", "version https://git-lfs.github.com/spec/v1\n", /Git LFS/],
    ["zip", "PK\u0003\u0004abc", /zip/], ["page", "<!DOCTYPE html><html>", /a web page/], ["old", "lmgg123456789", /before GGUF/], ["noise", Uint8Array.from([1, 2, 3, 255, 0, 7, 9, 9, 9, 9]), /something else/],
  ];
  for (const [name, bytes, message] of refused) await t.rejects(openModel(write(name, bytes)), { name: "ModelFormatError", message }, name);
  await t.rejects(openModel(join(path, "missing")), { name: "ArgumentError", message: /cannot be read/ });
  await t.rejects(openModel(""), { name: "ArgumentError" });
  write("none/readme.txt", "x");
  await t.rejects(openModel(join(path, "none")), { name: "ModelFormatError", message: /holds no GGUF/ });
  write("two/a.gguf", writeGguf({}));
  write("two/b.gguf", writeGguf({}));
  await t.rejects(openModel(join(path, "two")), { name: "ModelFormatError", message: /a\.gguf, b\.gguf/ });
});

t.test("tensors without config.json: the error says what is missing", async (t) => {
  const { path, write } = scratch(t);
  write("m/model.safetensors", small);
  for (const given of [join(path, "m"), join(path, "m", "model.safetensors")]) {
    await t.rejects(loadModel(given), { name: "ModelFormatError", message: /Expected a file config\.json beside the safetensors file.*model\.safetensors/ });
  }
  write("m/config.json", "{}");
  await t.rejects(loadModel(join(path, "m")), { name: "ModelFormatError", message: /config\.json/ });
  write("m/config.json", '{"hidden_size": 4}');
  await t.rejects(loadModel(join(path, "m")), { name: "ModelFormatError", message: /a string for model_type/ });
});

const minilm = modelPath("all-MiniLM-L6-v2");
t.test("a real model", { skip: skipWithout({ "all-MiniLM-L6-v2": minilm }) }, async (t) => {
  const file = await openModel(minilm!);
  t.equal(file.metadata.integer("hidden_size"), 384);
  t.same(file.tensors.get("embeddings.word_embeddings.weight")!.shape, [30522, 384]);
});

import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { systemInfo } from "tokenloom";
import { readVector } from "#lib/cli/conformance/read.js";
import { closeEnough, compareOutputs, firstBitDifference, type NamedTensor } from "#lib/cli/conformance/vector.js";
import { root, runProgram } from "./program.js";

/** A safetensors file of f32 tensors. */
function safetensors(metadata: Record<string, string>, tensors: Record<string, number[]>): Buffer {
  const header: Record<string, unknown> = { __metadata__: metadata };
  const parts: Buffer[] = [];
  let offset = 0;
  for (const [name, values] of Object.entries(tensors)) {
    const bytes = Buffer.from(Float32Array.from(values).buffer);
    header[name] = { dtype: "F32", shape: [values.length], data_offsets: [offset, (offset += bytes.length)] };
    parts.push(bytes);
  }
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, text, ...parts]);
}

const conformance = (...args: string[]) => runProgram("dist/esm/cli/conformance.js", args);
const tensor = (...values: number[]): NamedTensor => ({ shape: [values.length], data: Float32Array.from(values) });

t.test("tolerances", async (t) => {
  const tolerance = { atol: 0.1, rtol: 0.01 };
  t.ok(closeEnough(10.19, 10, tolerance));
  t.notOk(closeEnough(10.21, 10, tolerance));
  t.notOk(closeEnough(10.0001, 10, "exact"));
  t.ok(closeEnough(-Infinity, -Infinity, tolerance));
  t.notOk(closeEnough(-1e30, -Infinity, tolerance));
  t.notOk(closeEnough(Infinity, 1, tolerance));
  t.notOk(closeEnough(NaN, 1, tolerance));
  t.notOk(closeEnough(0, NaN, tolerance));
});

t.test("reading and comparing a vector", async (t) => {
  const folder = t.testdir({});
  const file = join(folder, "op__case.safetensors");
  writeFileSync(file, safetensors({ op: "op", params: '{"n":2}', tol: '{"out.y":{"atol":0.5,"rtol":0}}' }, { "in.x": [1, 2, 3], "out.y": [4, 5] }));
  const vector = await readVector(file);
  if (vector === undefined) return t.fail("it is a vector");
  t.equal(vector.op, "op");
  t.same(vector.params, { n: 2 });
  t.same([...(vector.tensors.get("in.x")?.data ?? [])], [1, 2, 3]);
  t.equal(compareOutputs(vector, new Map([["out.y", tensor(4.4, 5)]])), undefined);
  t.match(compareOutputs(vector, new Map([["out.y", tensor(4, 5.6)]])), /1 of 2 elements differ, most at 1/);
  t.match(compareOutputs(vector, new Map([["out.y", tensor(4)]])), /shape/);
  t.match(compareOutputs(vector, new Map()), /no such output/);
  t.equal(firstBitDifference(new Map([["a", tensor(0)]]), new Map([["a", tensor(-0)]])), "a", "bits, not values");
  t.equal(firstBitDifference(new Map([["a", tensor(NaN)]]), new Map([["a", tensor(NaN)]])), undefined);
});

t.test("unknown ops fail unless they may be skipped", async (t) => {
  const folder = t.testdir({ deeper: {} });
  writeFileSync(join(folder, "deeper", "nonsense.op__case.safetensors"), safetensors({ op: "nonsense.op", params: "{}", tol: "{}" }, { "out.y": [1] }));
  writeFileSync(join(folder, "weights.safetensors"), safetensors({}, { w: [1] }));
  const strict = await conformance(folder);
  t.equal(strict.code, 1);
  t.match(strict.stdout, /unknown op nonsense\.op/);
  t.match(strict.stdout, /\n0 passed, 2 failed\n$/);
  const lenient = await conformance(folder, "--skip-unknown");
  t.equal(lenient.code, 0);
  t.match(lenient.stdout, /\n2 skipped\n0 passed, 0 failed\n$/);
});

t.test("a broken file fails, and so does an empty folder", async (t) => {
  const folder = t.testdir({ "op__case.safetensors": "not a safetensors file at all", nothing: {} });
  const broken = await conformance(folder, "--skip-unknown");
  t.equal(broken.code, 1);
  t.match(broken.stdout, /FAIL.*ModelFormatError/);
  t.equal((await conformance(join(folder, "nothing"))).code, 2);
  t.equal((await conformance(folder, "--isa", "mmx")).code, 2);
  t.equal((await conformance(folder, "--threads", "0")).code, 2);
});

const shared = process.env["TOKENLOOM_SHARED"] ?? join(root, "..", "shared");
const logits = join(shared, "oracles", "models", "smollm2_logits.safetensors");
const skip = !existsSync(logits) ? "no shared folder: set TOKENLOOM_SHARED" : process.env["TOKENLOOM_MODELS"] === undefined && "no models: set TOKENLOOM_MODELS";

t.test("SmolLM2's logits", { skip }, async (t) => {
  const { code, stdout } = await conformance(logits, "--isa", systemInfo().isa);
  t.equal(code, 0, stdout);
  t.match(stdout, /1 passed, 0 failed/);
});

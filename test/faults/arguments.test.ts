import t from "tap";
import { tensor, Tensor, TokenloomError, type TensorType } from "tokenloom";
import { makeCall, missingOps, opNames, runCall, type Call } from "./calls.js";
import { Random, report, sizesOf } from "./support.js";

/** One wrong thing instead of a good one. */
interface Wrong {
  readonly what: string;
  readonly value: unknown;
  /** Whether it may be right after all, such as another rank where several are allowed: then only a crash or an untyped error counts. */
  readonly mayPass?: boolean;
}

function detached(): Float32Array {
  const array = new Float32Array(4);
  structuredClone(array.buffer, { transfer: [array.buffer] });
  return array;
}

function disposed(of: Tensor): Tensor {
  const made = tensor(of.data as Float32Array, of.shape, of.type);
  made.dispose();
  return made;
}

/** A tensor whose buffer was taken away after it was made. */
function emptied(of: Tensor): Tensor {
  const array = (of.data as Float32Array).slice(), made = tensor(array, of.shape, of.type);
  structuredClone(array.buffer, { transfer: [array.buffer] });
  return made;
}

/** A tensor of the right shape that says of itself more than it has. */
const forged = (of: Tensor): object => ({ type: of.type, shape: of.shape, data: of.data, size: of.size });

const types: readonly TensorType[] = ["f32", "i32", "u8", "i8"];
const arrays = { f32: Float32Array, i32: Int32Array, u8: Uint8Array, i8: Int8Array } as unknown as Record<string, new (size: number) => Float32Array>;

function wrongTensors(good: Tensor): Wrong[] {
  const other = types.find((type) => type !== good.type)!;
  const wrong: Wrong[] = [
    { what: "undefined", value: undefined }, { what: "null", value: null }, { what: "a number", value: 5 }, { what: "a string", value: "x" }, { what: "an array", value: [1, 2] },
    { what: "a typed array", value: new Float32Array(4) }, { what: "a forged tensor", value: forged(good) }, { what: "a disposed tensor", value: disposed(good) },
    { what: `a tensor of ${other}`, value: tensor(new arrays[other]!(good.size), good.shape, other), mayPass: good.shape.length === 4 },
    { what: "one more dim", value: good.shape.length < 5 ? tensor(good.data as Float32Array, [1, ...good.shape], good.type) : 7, mayPass: true },
    { what: "one dim less", value: tensor(good.data as Float32Array, [good.size], good.type), mayPass: true },
    { what: "an empty tensor", value: tensor(new arrays[good.type]!(0), good.shape.map(() => 0), good.type), mayPass: true },
    ...good.shape.map((dim, axis) => {
      const shape = good.shape.map((size, i) => (i === axis ? dim + 1 : size));
      return { what: `dim ${axis} one larger`, value: tensor(new arrays[good.type]!(shape.reduce((a, b) => a * b, 1)), shape, good.type), mayPass: true };
    }),
  ];
  if (good.size > 0) wrong.push({ what: "a buffer taken away", value: emptied(good) });
  return wrong;
}

const numbers: readonly unknown[] = [NaN, Infinity, -Infinity, -1, 0.5, 2 ** 53, 2 ** 45, 1e300, "1", null, {}, [], 1n, true, Symbol("x")];

/** The paths of all values within options. */
function pathsOf(value: unknown, path: readonly string[] = []): { path: readonly string[]; value: unknown }[] {
  if (value instanceof Tensor || typeof value !== "object" || value === null) return [{ path, value }];
  return [...(path.length > 0 ? [{ path, value }] : []), ...Object.entries(value).flatMap(([key, one]) => pathsOf(one, [...path, key]))];
}

function replaced(value: unknown, path: readonly string[], by: unknown): unknown {
  const [first, ...rest] = path;
  return first === undefined ? by : { ...(value as object), [first]: replaced((value as Record<string, unknown>)[first], rest, by) };
}

function* wrongCalls(name: string, random: Random): Generator<{ call: Call; what: string; mayPass: boolean }> {
  const good = makeCall(name, random), last = good.args.length - 1;
  for (const [i, argument] of good.args.entries()) {
    const by = (value: unknown): Call => ({ name, args: good.args.map((given, at) => (at === i ? value : given)) });
    if (argument instanceof Tensor) {
      for (const { what, value, mayPass = false } of wrongTensors(argument)) yield { call: by(value), what: `argument ${i} is ${what}`, mayPass: mayPass || (name === "cosineMatrix" && i === 1 && value === undefined) };
      continue;
    }
    for (const value of [null, 5, "x", true]) yield { call: by(value), what: `argument ${i} is ${String(value)}`, mayPass: i === last };
    for (const { path, value } of pathsOf(argument)) {
      const wrong = value instanceof Tensor ? wrongTensors(value) : numbers.map((number) => ({ what: String(number), value: number, mayPass: true }));
      for (const { what, value: one, mayPass = false } of wrong) yield { call: by(replaced(argument, path, one)), what: `argument ${i}.${path.join(".")} is ${what}`, mayPass: mayPass || one === undefined || one === null };
    }
    for (const threads of [0, -1, 1.5, NaN, 1000, "2"]) yield { call: by({ ...(argument as object), threads }), what: `threads ${threads}`, mayPass: i !== last };
    for (const signal of [5, {}, null]) yield { call: by({ ...(argument as object), signal }), what: `signal ${JSON.stringify(signal)}`, mayPass: i !== last };
  }
  yield { call: { name, args: [] }, what: "no arguments", mayPass: false };
}

t.test("every public op has calls here", (t) => {
  t.same(missingOps, []);
  t.end();
});

t.test("wrong arguments of every op: a typed error that names one, never a crash, never a result", { timeout: 3_600_000 }, async (t) => {
  const random = new Random(16), { rounds } = sizesOf("arguments") as { rounds: number };
  let tried = 0, refused = 0;
  for (const name of opNames) {
    for (let round = 0; round < rounds; round++) {
      for (const { call, what, mayPass } of wrongCalls(name, random)) {
        tried++;
        try {
          await runCall(call);
          if (!mayPass) t.fail(`${name}: ${what} was accepted`);
        } catch (error) {
          refused++;
          if (!(error instanceof TokenloomError)) t.fail(`${name}: ${what}: untyped ${(error as Error).stack}`);
          else if (!["TL_ARGUMENT", "TL_SHAPE", "TL_DISPOSED", "TL_MEMORY", "TL_NUMERIC"].includes(error.code)) t.fail(`${name}: ${what}: ${error.code} ${error.message}`);
          else if (error.message === "" || ((error as { argument?: string }).argument === "" && !["TL_MEMORY", "TL_NUMERIC"].includes(error.code))) t.fail(`${name}: ${what}: names no argument: ${error.message}`);
        }
      }
      await t.resolves(runCall(makeCall(name, random)), `${name} goes on`);
    }
  }
  report("arguments", { ops: opNames.length, calls: tried, refused });
});

t.test("tensor() refuses what is no plain memory", (t) => {
  const wrong: [string, () => unknown][] = [
    ["a shared buffer", () => tensor(new Float32Array(new SharedArrayBuffer(16)))],
    ["a resizable buffer", () => tensor(new Float32Array(new (ArrayBuffer as unknown as new (size: number, options: object) => ArrayBuffer)(16, { maxByteLength: 64 })))],
    ["a detached buffer", () => tensor(detached(), [4])],
    ["a plain array", () => tensor([1, 2] as unknown as Float32Array)],
    ["a Float64Array", () => tensor(new Float64Array(2) as unknown as Float32Array)],
    ["a DataView", () => tensor(new DataView(new ArrayBuffer(8)) as unknown as Float32Array)],
    ["another type", () => tensor(new Float32Array(2), [2], "i32")],
    ["another product", () => tensor(new Float32Array(4), [5])],
    ["negative dims", () => tensor(new Float32Array(4), [-2, -2])],
    ["fractions", () => tensor(new Float32Array(4), [2.5, 1.6])],
    ["a product that wraps", () => tensor(new Float32Array(0), [2 ** 32, 2 ** 32])],
    ["dims above 2^53", () => tensor(new Float32Array(4), [2 ** 60])],
    ["six dims", () => tensor(new Float32Array(1), [1, 1, 1, 1, 1, 1])],
  ];
  for (const [what, call] of wrong) t.throws(call, { code: "TL_ARGUMENT" }, what);
  t.end();
});

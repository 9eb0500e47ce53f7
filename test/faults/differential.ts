/**
 * Random calls of all ops on one instruction set (TOKENLOOM_ISA), results to a file: `differential.js SEED FIRST COUNT FILE`. Each array that native
 * code is given lies between guard zones of 64 bytes, at a start that is aligned to its elements only.
 */
import { openSync, writeSync } from "node:fs";
import { Tensor, TokenloomError } from "tokenloom";
import { native, type Bytes, type NativeHandle } from "#lib/native.js";
import { makeCall, opNames, runCall } from "./calls.js";
import { Random } from "./support.js";

const [seed, first, count] = process.argv.slice(2, 5).map(Number) as [number, number, number], file = openSync(process.argv[5]!, "w");
const guard = 64, mark = 0xa5;
let where = "", guarded = 0;

interface Zone {
  readonly original: Bytes;
  readonly copy: Bytes;
  readonly whole: Uint8Array;
}

function surround(original: Bytes, shift: number): Zone {
  const { BYTES_PER_ELEMENT: size, byteLength: bytes } = original, start = guard + size * shift, whole = new Uint8Array(start + bytes + guard + 64).fill(mark);
  whole.set(new Uint8Array(original.buffer, original.byteOffset, bytes), start);
  const make = original.constructor as new (buffer: ArrayBufferLike, offset: number, length: number) => Bytes;
  guarded++;
  return { original, whole, copy: new make(whole.buffer, start, original.length) };
}

function release({ original, copy, whole }: Zone): void {
  const end = copy.byteOffset + copy.byteLength;
  if (whole.subarray(0, copy.byteOffset).some((byte) => byte !== mark) || whole.subarray(end).some((byte) => byte !== mark)) throw new Error(`${where}: wrote outside of ${copy.byteLength} bytes`);
  new Uint8Array(original.buffer, original.byteOffset, original.byteLength).set(whole.subarray(copy.byteOffset, end));
}

const run = native.run.bind(native), places = new Random(seed);
native.run = async (program, symbols, bindings, ...rest) => {
  const zones = bindings.map((binding) => (ArrayBuffer.isView(binding) ? surround(binding as Bytes, places.below(17)) : undefined));
  try {
    await run(program, symbols, bindings.map((binding, i) => zones[i]?.copy ?? binding) as (Bytes | NativeHandle | null)[], ...rest);
  } finally {
    for (const zone of zones) if (zone) release(zone);
  }
};

function tensorsOf(value: unknown): Tensor[] {
  if (value instanceof Tensor) return [value];
  return typeof value === "object" && value !== null ? Object.values(value).flatMap(tensorsOf) : [];
}

for (let i = first; i < first + count; i++) {
  const random = new Random(seed * 1_000_003 + i), name = random.pick(opNames), call = makeCall(name, random, 0.03);
  where = `case ${i}, ${name}`;
  let results: Tensor[] = [], refused = "";
  try {
    const value = await runCall(call);
    results = value === undefined ? tensorsOf(call.args[0]) : tensorsOf(value);
  } catch (error) {
    if (!(error instanceof TokenloomError)) throw error;
    refused = error.code;
  }
  writeSync(file, `${JSON.stringify({ name, refused, results: results.map(({ type, shape, data }) => ({ type, shape, data: Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString("base64") })) })}\n`);
}
console.log(guarded);

/** A conformance vector: inputs, expected outputs and tolerances of one case of one operation, from an independent implementation. */
export interface NamedTensor {
  readonly shape: readonly number[];
  /** f16 and bf16 as their bits. */
  readonly data: Float32Array | Int32Array | Uint8Array | Uint16Array;
}

export type Tolerance = "exact" | { readonly atol: number; readonly rtol: number };

export interface Vector {
  readonly path: string;
  readonly op: string;
  readonly params: Readonly<Record<string, unknown>>;
  /** By full output name; empty where the operation has a criterion of its own. */
  readonly tolerances: ReadonlyMap<string, Tolerance>;
  readonly tensors: ReadonlyMap<string, NamedTensor>;
}

export type Outputs = ReadonlyMap<string, NamedTensor>;

/** How one op is run through the public interface. */
export interface Operation {
  run(vector: Vector, options: { readonly threads: number }): Promise<Outputs>;
  /** What is wrong with the outputs, or undefined. Without it each `out.*` tensor is compared by its tolerance. */
  check?(vector: Vector, outputs: Outputs): string | undefined;
}

/** A vector's tensor; a missing one is a fault of the file. */
export function tensorOf(vector: Vector, name: string): NamedTensor {
  const tensor = vector.tensors.get(name);
  if (tensor === undefined) throw new Error(`the vector has no tensor ${name}`);
  return tensor;
}

/** |got − want| ≤ atol + rtol·|want|; infinities and NaN only equal themselves. */
export function closeEnough(got: number, want: number, tolerance: Tolerance): boolean {
  if (got === want || (Number.isNaN(got) && Number.isNaN(want))) return true;
  if (tolerance === "exact" || !Number.isFinite(got) || !Number.isFinite(want)) return false;
  return Math.abs(got - want) <= tolerance.atol + tolerance.rtol * Math.abs(want);
}

/** The first difference between what a vector expects and what came, in words. */
export function compareOutputs(vector: Vector, outputs: Outputs): string | undefined {
  const expected = [...vector.tensors].filter(([name]) => name.startsWith("out."));
  if (expected.length === 0) return "the vector has no out.* tensor";
  for (const [name, want] of expected) {
    const got = outputs.get(name);
    if (got === undefined) return `${name}: no such output`;
    const difference = compareTensor(got, want, vector.tolerances.get(name) ?? vector.tolerances.get(name.slice(4)) ?? "exact");
    if (difference !== undefined) return `${name}: ${difference}`;
  }
  return undefined;
}

function compareTensor(got: NamedTensor, want: NamedTensor, tolerance: Tolerance): string | undefined {
  if (got.shape.join() !== want.shape.join()) return `shape [${got.shape.join(", ")}] instead of [${want.shape.join(", ")}]`;
  let wrong = 0;
  let worst = -1;
  let worstBy = -1;
  for (let index = 0; index < want.data.length; index++) {
    const [g, w] = [got.data[index] ?? Number.NaN, want.data[index] ?? Number.NaN];
    if (closeEnough(g, w, tolerance)) continue;
    wrong++;
    const by = Number.isFinite(g) && Number.isFinite(w) ? Math.abs(g - w) : Number.POSITIVE_INFINITY;
    if (by > worstBy) [worst, worstBy] = [index, by];
  }
  return wrong === 0 ? undefined : `${wrong} of ${want.data.length} elements differ, most at ${worst}: ${got.data[worst]} instead of ${want.data[worst]}`;
}

/** The first output that is not the same bit for bit. */
export function firstBitDifference(a: Outputs, b: Outputs): string | undefined {
  for (const [name, tensor] of a) {
    const other = b.get(name);
    if (other === undefined || Buffer.compare(bytesOf(tensor), bytesOf(other)) !== 0) return name;
  }
  return undefined;
}

function bytesOf({ data }: NamedTensor): Buffer {
  return Buffer.from(data.buffer, data.byteOffset, data.byteLength);
}

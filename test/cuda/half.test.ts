import t from "tap";
import { ops, systemInfo, tensor, type Tensor } from "tokenloom";

const { cuda } = systemInfo();
const skip = !cuda.available && `no CUDA device: ${cuda.reason}`;

/** f32 → the bits of bf16, and the number they stand for. */
function rounded(values: Float32Array): { bits: Uint16Array; values: Float32Array } {
  const words = new Uint32Array(Float32Array.from(values).buffer);
  const bits = Uint16Array.from(words, (word) => (word + 0x7fff + ((word >>> 16) & 1)) >>> 16);
  return { bits, values: new Float32Array(Uint32Array.from(bits, (half) => half << 16).buffer) };
}

const numbers = (count: number, seed: number): Float32Array => Float32Array.from({ length: count }, (_, i) => Math.sin(seed + i * 1.7) + Math.cos(seed * 3 + i * 0.31));

/** Softmax attention in f64, causal where asked, one head at a time. */
function reference(q: Float32Array, k: Float32Array, v: Float32Array, heads: number, group: number, queries: number, keys: number, dim: number, causal: boolean): Float64Array {
  const out = new Float64Array(heads * queries * dim);
  for (let h = 0; h < heads; h++) for (let i = 0; i < queries; i++) {
    const g = Math.floor(h / group), last = causal ? keys - queries + i : keys - 1;
    const scores = Array.from({ length: last + 1 }, (_, j) => {
      let dot = 0;
      for (let d = 0; d < dim; d++) dot += q[(h * queries + i) * dim + d]! * k[(g * keys + j) * dim + d]!;
      return dot / Math.sqrt(dim);
    });
    const most = Math.max(...scores), weights = scores.map((s) => Math.exp(s - most)), sum = weights.reduce((a, b) => a + b, 0);
    for (const [j, w] of weights.entries()) for (let d = 0; d < dim; d++) out[(h * queries + i) * dim + d]! += (w / sum) * v[(g * keys + j) * dim + d]!;
  }
  return out;
}

t.test("attention on tensor cores equals float64 on the rounded numbers", { skip }, async (t) => {
  for (const { heads, kvHeads, queries, keys, dim, causal } of [
    { heads: 4, kvHeads: 2, queries: 33, keys: 100, dim: 64, causal: true },
    { heads: 2, kvHeads: 2, queries: 70, keys: 70, dim: 128, causal: false },
    { heads: 2, kvHeads: 1, queries: 20, keys: 130, dim: 40, causal: true },
    { heads: 1, kvHeads: 1, queries: 65, keys: 65, dim: 30, causal: true },
  ]) {
    const q = rounded(numbers(heads * queries * dim, 1)), k = rounded(numbers(kvHeads * keys * dim, 2)), v = rounded(numbers(kvHeads * keys * dim, 3));
    const want = reference(q.values, k.values, v.values, heads, heads / kvHeads, queries, keys, dim, causal);
    const as = (bits: Uint16Array, count: number, tokens: number): Tensor => tensor(bits, [1, count, tokens, dim], "bf16");
    using got = await ops.attention(as(q.bits, heads, queries), as(k.bits, kvHeads, keys), as(v.bits, kvHeads, keys), { causal, device: "cuda" });
    let worst = 0;
    for (const [i, x] of want.entries()) worst = Math.max(worst, Math.abs(x - got.out.data[i]!));
    t.ok(worst < 1e-2, `${heads}/${kvHeads} heads, ${queries} × ${keys}, dim ${dim}: off by ${worst.toExponential(1)}`); // weights are rounded to bf16: 2^-8 of values up to 2
  }
});

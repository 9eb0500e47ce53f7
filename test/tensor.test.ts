import t from "tap";
import { tensor, zeros } from "#lib/tensor.js";
import { ArgumentError, DisposedError, memory } from "tokenloom";

t.test("a tensor is a view: nothing is copied", (t) => {
  const data = new Float32Array(6), x = tensor(data, [2, 3]);
  data[4] = 7;
  t.equal(x.data[4], 7);
  t.equal(x.size, 6);
  t.same(x.reshape([3, 2]).shape, [3, 2]);
  t.equal(x.reshape([6]).data, data);
  t.end();
});

t.test("dispose twice is fine, use afterwards is not", (t) => {
  const before = memory().tensors, x = zeros([4, 4]);
  t.equal(memory().tensors - before, 64);
  x.dispose();
  x.dispose();
  t.equal(memory().tensors, before);
  t.ok(x.isDisposed);
  t.throws(() => x.data, DisposedError);
  {
    using y = zeros([2], "i32");
    t.equal(y.data.length, 2);
  }
  t.equal(memory().tensors, before);
  t.end();
});

t.test("wrong arguments are told by name", (t) => {
  t.throws(() => tensor(new Float32Array(5), [2, 3]), { name: "ArgumentError", message: /for shape / });
  t.throws(() => tensor(new Float32Array(6), [2, -3]), { message: /for shape\[1\]/ });
  t.throws(() => tensor(new Float32Array(6), [2.5, 2]), ArgumentError);
  t.throws(() => tensor(new Float32Array(1), [1, 1, 1, 1, 1, 1]), ArgumentError);
  t.throws(() => tensor(new Float64Array(6) as unknown as Float32Array), { message: /Expected a Float32Array, .* for data but received/ });
  t.throws(() => tensor(new Uint16Array(4) as unknown as Float32Array), ArgumentError, "f16 or bf16 has to be said");
  t.throws(() => tensor(new Float32Array(new SharedArrayBuffer(16))), ArgumentError);
  t.throws(() => tensor(null as unknown as Float32Array), ArgumentError);
  t.throws(() => zeros([2], "f64" as "f32"), ArgumentError);
  t.equal(tensor(new Uint16Array(4), [4], "bf16").type, "bf16");
  t.end();
});

t.test("dropped tensors leave the count when they are collected", async (t) => {
  const before = memory().tensors;
  for (let i = 0; i < 1500; i++) zeros([1 << 18]);
  for (let i = 0; i < 20 && memory().tensors > before; i++) {
    globalThis.gc?.();
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  t.ok(memory().tensors <= before, `${memory().tensors} bytes are left`);
});

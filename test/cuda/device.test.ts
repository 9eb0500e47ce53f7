import t from "tap";
import { ops, systemInfo, tensor } from "tokenloom";


t.test("a device that there is not says why", { skip: systemInfo().cuda.available && "there is a CUDA device here" }, async (t) => {
  const { cuda } = systemInfo();
  t.notOk(cuda.available);
  if (!cuda.available) t.match(cuda.reason, /\S/);
  const x = tensor(new Float32Array(8), [2, 4]), weight = tensor(new Float32Array(4), [4]);
  await t.rejects(ops.rmsNorm(x, weight, { device: "cuda" }), { name: "ArgumentError", argument: "device" });
});

t.test("devices by name", async (t) => {
  const x = tensor(new Float32Array(8), [2, 4]), weight = tensor(new Float32Array(4), [4]);
  await t.rejects(ops.rmsNorm(x, weight, { device: "gpu" as "cuda" }), { name: "ArgumentError", message: /'cpu' or 'cuda'/ });
  using out = await ops.rmsNorm(x, weight, { device: "cpu" });
  t.same(out.out.shape, [2, 4]);
});

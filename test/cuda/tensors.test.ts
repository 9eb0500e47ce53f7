import t from "tap";
import { ops, systemInfo, tensor, zeros } from "tokenloom";

const { cuda } = systemInfo();
const skip = !cuda.available && `no CUDA device: ${cuda.reason}`;

function now(): Extract<typeof cuda, { available: true }> {
  const { cuda: device } = systemInfo();
  if (!device.available) throw new Error(device.reason);
  return device;
}

t.test("a tensor says where it lies", async (t) => {
  const x = zeros([2, 3]);
  t.equal(x.device, "cpu");
  using same = await x.to("cpu");
  t.equal(same.data, x.data, "a view, not a copy");
  await t.rejects(x.to("gpu" as "cpu"), { name: "ArgumentError" });
  x.dispose();
  await t.rejects(x.to("cpu"), { name: "DisposedError" });
});

t.test("without a device a tensor stays", { skip: cuda.available && "there is a CUDA device here" }, async (t) => {
  await t.rejects(zeros([2]).to("cuda"), { name: "ArgumentError", message: /there is none/ });
});

t.test("copies are asked for and counted; ops run where their operands lie and leave their results there", { skip }, async (t) => {
  const values = Float32Array.from({ length: 4 * 6 }, (_, i) => Math.sin(i)), x = tensor(values, [4, 6]), weight = tensor(new Float32Array(6).fill(1.5), [6]);
  using want = await ops.rmsNorm(x, weight, { device: "cpu" });
  const before = now(), there = await x.to("cuda"), weightThere = await weight.to("cuda");
  t.equal(now().bytesIn - before.bytesIn, 4 * 6 * 4 + 6 * 4);
  t.equal(there.device, "cuda");
  t.throws(() => there.data, { name: "ArgumentError", argument: "data" });
  const copied = now();
  using out = await ops.rmsNorm(there, weightThere);
  using again = await ops.softmax(out.out.reshape([2, 12]));
  t.same([now().bytesIn, now().bytesOut], [copied.bytesIn, copied.bytesOut], "nothing was copied on the way");
  t.equal(again.out.device, "cuda");
  const back = await out.out.to("cpu");
  t.equal(now().bytesOut - copied.bytesOut, 4 * 6 * 4);
  t.ok(back.data.every((value, i) => Math.abs(value - want.out.data[i]!) < 1e-6));
  await t.rejects(ops.rmsNorm(there, weightThere, { device: "cpu" }), { name: "ArgumentError", argument: "options.device" });
  using mixed = await ops.rmsNorm(there, weight);
  t.equal(mixed.out.device, "cuda", "what lies elsewhere comes along");
  back.dispose();
});

t.test("memory of the device goes with the last view", { skip }, async (t) => {
  const held = now().bytesHeld, x = await zeros([1000, 100], "f16").to("cuda"), view = x.reshape([100000]);
  t.equal(now().bytesHeld - held, 200_000);
  x.dispose();
  x.dispose();
  t.throws(() => x.reshape([1]), { name: "DisposedError" });
  t.equal(now().bytesHeld - held, 200_000);
  t.throws(() => view.reshape([7]), { name: "ArgumentError" });
  view.dispose();
  t.equal(now().bytesHeld, held);
});

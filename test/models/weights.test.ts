import { fileURLToPath } from "node:url";
import t from "tap";
import { ModelFormatError } from "tokenloom";
import type { ModelFile } from "#lib/models/file.js";
import { openModel } from "#lib/models/open.js";
import { WeightLoader } from "#lib/models/weights.js";
import { settledMemory } from "../support/leaks.js";

const file = await openModel(fileURLToPath(new URL("../../../models/tiny.gguf", import.meta.url)));

/** The same file with tensors that seem to lie behind its end. */
function moved(...names: readonly string[]): ModelFile {
  const tensors = new Map(file.tensors);
  for (const name of names) tensors.set(name, { ...tensors.get(name)!, offset: 1 << 30 });
  return { ...file, tensors };
}

t.test("of tensors read in one call, the one that cannot be read is named, and nothing stays behind", async (t) => {
  const wrong = "blk.0.ffn_up.weight", loader = new WeightLoader(moved(wrong), {});
  const names = ["blk.0.attn_q.weight", wrong, "blk.0.ffn_down.weight"];
  const results = await Promise.allSettled(names.map((name) => loader.weight([loader.wholeTensor(name)])));
  t.same(results.map(({ status }) => status), ["rejected", "rejected", "rejected"]);
  for (const result of results) {
    const error = (result as PromiseRejectedResult).reason as ModelFormatError;
    t.ok(error instanceof ModelFormatError);
    t.match(error, { tensor: wrong, message: /ended while its weights were read/ });
  }
  loader.release();
  await t.rejects(new WeightLoader(moved("blk.0.attn_norm.weight"), {}).vector("output_norm.weight", "blk.0.attn_norm.weight"), { message: /tensor blk\.0\.attn_norm\.weight/ });
});

t.test("vectors are joined in the order asked for; the same weight is read once", async (t) => {
  const loader = new WeightLoader(file, {});
  const [first, second, both, weight, again] = await Promise.all([
    loader.numbers("blk.0.attn_norm.weight"), loader.numbers("output_norm.weight"), loader.vector("blk.0.attn_norm.weight", "output_norm.weight"),
    loader.weight([loader.wholeTensor("blk.0.attn_q.weight")]), loader.weight([loader.wholeTensor("blk.0.attn_q.weight")]),
  ]);
  t.equal(both.length, first.length + second.length);
  t.equal(weight.handle, again.handle);
  t.notSame(first, second);
  loader.release();
});

t.test("what a loader read after its release is freed", async (t) => {
  const loader = new WeightLoader(file, {});
  const weight = loader.weight([loader.wholeTensor("token_embd.weight")]);
  await Promise.resolve();
  loader.release();
  await weight;
  t.equal((await settledMemory()).handles, 0);
});

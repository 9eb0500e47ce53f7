import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { loadModel, snapKV, type LanguageModel } from "tokenloom";
import { alone, randomPrompt, read, type Text } from "./sessions.js";
import { child, Random, report, sizesOf } from "./support.js";

const model = await loadModel("tiny");
t.after(() => model.dispose());
const bits = (text: Text): string => `${text.tokens.join()} ${Buffer.from(Float64Array.of(text.logProb).buffer).toString("hex")}`;

/** A hash of every bit of the largest logits behind each token. */
async function logits(of: LanguageModel, ids: readonly number[]): Promise<string> {
  const { topLogits, topIds, logSumExp } = await of.score(ids, { top: 64 }), hash = createHash("sha256");
  for (const rows of [...topLogits, ...topIds, logSumExp]) hash.update(JSON.stringify(Array.from(rows)));
  return hash.digest("hex");
}

t.test("the same bits in any number of threads, among any neighbours, in pieces or whole, behind evictions, twice", { timeout: 3_600_000 }, async (t) => {
  const { prompts } = sizesOf("determinism") as { prompts: number }, random = new Random(14);
  for (let i = 0; i < prompts; i++) {
    const prompt = randomPrompt(random), ids = model.tokenize(prompt), options = { maxTokens: 12, seed: i, temperature: i % 2, topK: 0 };
    const right = bits(await alone(model, prompt, options, { threads: 1 })), where = `prompt ${i}`;
    for (const threads of [1, 2, 3]) t.equal(bits(await alone(model, prompt, options, { threads })), right, `${where}, ${threads} threads`);
    const neighbours = Array.from({ length: 1 + random.below(7) }, () => [randomPrompt(random), random.chance(0.5) ? { cache: snapKV({ budget: 40, window: 8 }) } : {}] as const);
    const at = random.below(neighbours.length + 1), all = [...neighbours.slice(0, at), [prompt, {}] as const, ...neighbours.slice(at)];
    const together = await Promise.all(all.map(([other, session]) => alone(model, other, options, session)));
    t.equal(bits(together[at]!), right, `${where}, ${at + 1}th of ${all.length}`);
    using pieces = model.session({ tenant: "pieces" });
    for (let begin = 0, end = 0; begin < ids.length - 1; begin = end) {
      end = Math.min(ids.length - 1, begin + 1 + random.below(ids.length));
      await read(pieces, ids.slice(begin, end), { maxTokens: 0 });
    }
    t.equal(bits(await read(pieces, ids.slice(-1), options)), right, `${where}, in pieces`);
    const whole = await logits(model, ids);
    t.equal(await logits(model, ids), whole, `${where}: logits twice`);
  }
  report("determinism", { prompts, variants: 7 });
});

t.test("neither sessions of another tenant nor freed pages tell anything", async (t) => {
  const prompt = "The queen looked at the garden and said that it was late. ".repeat(6), ids = model.tokenize(prompt).length;
  using first = model.session({ tenant: "a" });
  await read(first, prompt, { maxTokens: 1 });
  using same = model.session({ tenant: "a" }), other = model.session({ tenant: "b" }), none = model.session();
  for (const session of [same, other, none]) await read(session, prompt, { maxTokens: 1 });
  t.ok(same.stats().promptTokens < ids / 2, "the same tenant takes the beginning over");
  t.ok(same.stats().sharedBytes > 0);
  for (const [session, name] of [[other, "another tenant"], [none, "no tenant"]] as const) {
    t.ok(session.stats().promptTokens >= ids - 1, `${name} computes all`);
    t.equal(session.stats().sharedBytes, 0);
  }
  t.throws(() => model.session({ tenant: 5 as unknown as string }), { code: "TL_ARGUMENT" });

  // What a session saves after others came and went is, to the byte, what it saves in a process that never saw another.
  const folder = mkdtempSync(join(tmpdir(), "tokenloom-private-"));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  const code = (path: string, before: boolean): string => `
    import { loadModel } from "tokenloom";
    const model = await loadModel("tiny");
    const read = async (session, prompt) => { for await (const piece of session.generate(prompt, { maxTokens: 3, seed: 1 })) void piece; };
    if (${before}) for (let i = 0; i < 20; i++) { using session = model.session(); await read(session, "a secret that nobody may read ".repeat(1 + i)); }
    const session = model.session();
    await read(session, "Hello");
    await session.save(${JSON.stringify(path)});
  `.replace(/using session = model.session\(\); (await .*?\));/, "const s = model.session(); await read(s, \"a secret that nobody may read \".repeat(1 + i)); s.dispose();");
  const files: Buffer[] = [];
  for (const before of [false, true]) {
    const path = join(folder, String(before)), { code: exit, stderr } = await child(["--input-type=module", "-e", code(path, before)]);
    t.equal(exit, 0, stderr);
    files.push(readFileSync(path));
  }
  t.ok(files[0]!.equals(files[1]!), "freed pages are not in what is saved");
  report("privacy", { promptTokens: ids, sameTenant: same.stats().promptTokens, otherTenant: other.stats().promptTokens });
});

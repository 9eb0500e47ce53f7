import { spawnSync } from "node:child_process";
import t from "tap";
import { loadModel, ops, systemInfo, tensor, type LanguageModel, type Session } from "tokenloom";

const { cuda } = systemInfo();
const skip = !cuda.available && `no CUDA device: ${cuda.reason}`;

async function read(session: Session, prompt: string, maxTokens: number): Promise<{ tokens: number[]; logProbs: number[] }> {
  const tokens: number[] = [], logProbs: number[] = [];
  for await (const piece of session.generate(prompt, { maxTokens, temperature: 0 })) {
    tokens.push(...piece.tokens);
    logProbs.push(piece.logProb);
  }
  return { tokens, logProbs };
}

function now(): Extract<typeof cuda, { available: true }> {
  const { cuda: device } = systemInfo();
  if (!device.available) throw new Error(device.reason);
  return device;
}

const prompts = ["Once upon a time", "The queen", "A small dog"];

t.test("sessions side by side give what they give alone", { skip }, async (t) => {
  using model: LanguageModel = await loadModel("tiny", { device: "cuda" });
  const alone: number[][] = [];
  for (const prompt of prompts) {
    using session = model.session();
    alone.push((await read(session, prompt, 12)).tokens);
  }
  const sessions = prompts.map(() => model.session()), together = await Promise.all(sessions.map((session, i) => read(session, prompts[i]!, 12)));
  for (const session of sessions) session.dispose();
  t.same(together.map(({ tokens }) => tokens), alone);
  t.ok(now().streams > 1, "on streams of their own");
});

t.test("decoding steps become launches of a graph, which changes no result", { skip }, async (t) => {
  using model: LanguageModel = await loadModel("tiny", { device: "cuda" });
  using session = model.session();
  const before = now().graphs, { tokens, logProbs } = await read(session, prompts[0]!, 40), after = now().graphs;
  t.ok(after.made > before.made && after.launches - before.launches >= 30, `${after.launches - before.launches} of 40 steps`);
  // Across the edge of a page (32 tokens) the graph has to follow. A score of the whole text is one run of another program: no graph.
  const ids = model.tokenize(prompts[0]!, { bos: model.tokenizer.addBos }), scored = await model.score([...ids, ...tokens]);
  t.equal(now().graphs.launches, after.launches);
  const worst = Math.max(...logProbs.map((logProb, i) => Math.abs(logProb - scored.logProbs[ids.length - 1 + i]!)));
  t.ok(worst < 1e-3, `log-probabilities differ by ${worst}`);
});

t.test("a run that repeats with other numbers, and one that fails among them", { skip }, async (t) => {
  const weight = tensor(new Float32Array(6).fill(2), [6]);
  for (let i = 1; i <= 6; i++) {
    using out = await ops.rmsNorm(tensor(new Float32Array(18).fill(i), [3, 6]), weight, { epsilon: 0, device: "cuda" });
    t.ok(out.out.data.every((x) => Math.abs(x - 2) < 1e-5));
    const rows = tensor(Float32Array.from({ length: 8 }, (_, j) => i + j), [1, 4, 2]), source = tensor(Int32Array.of(1, i % 2 ? 9 : 3), [1, 2]);
    if (i % 2) await t.rejects(ops.unmerge(rows, source, { device: "cuda" }), { name: "ArgumentError" });
    else t.same(Array.from((await ops.unmerge(rows, source, { device: "cuda" })).data), [i + 2, i + 3, i + 6, i + 7]);
  }
});

t.test("copies larger than the staging memory", { skip }, async (t) => {
  const rows = 3000, width = 1024, x = Float32Array.from({ length: rows * width }, (_, i) => (i % 251) - 125);
  using out = await ops.softmax(tensor(x, [rows, width]), { device: "cuda" });
  using want = await ops.softmax(tensor(x, [rows, width]), { device: "cpu" });
  let worst = 0;
  for (let i = 0; i < x.length; i++) worst = Math.max(worst, Math.abs(out.out.data[i]! - want.out.data[i]!));
  t.ok(worst < 1e-6, `off by ${worst}`);
});

function child(limit: string): string {
  const program = `
    import { ops, systemInfo, tensor } from "tokenloom";
    const { cuda } = systemInfo();
    if (!cuda.available) console.log(cuda.reason);
    else {
      const small = await ops.softmax(tensor(new Float32Array(64), [8, 8]), { device: "cuda" });
      const error = await ops.softmax(tensor(new Float32Array(4e6), [1000, 4000]), { device: "cuda" }).catch((error) => error);
      const again = await ops.softmax(tensor(new Float32Array(64), [8, 8]), { device: "cuda" });
      console.log(error.name, error.code, error.message, small.out.data[0], again.out.data[0], systemInfo().cuda.bytesTaken <= ${limit});
    }`;
  const { stdout, stderr } = spawnSync(process.execPath, ["--input-type=module", "-e", program], { encoding: "utf8", env: { ...process.env, TOKENLOOM_DEVICE_MEMORY: limit } });
  return stdout + stderr;
}

t.test("a limit on the device's memory", { skip }, async (t) => {
  t.match(child("20000000"), /OutOfMemoryError TL_MEMORY cuda: \w+: the limit of TOKENLOOM_DEVICE_MEMORY is reached, \d+ bytes were asked for: it holds \d+ bytes and has taken \d+ of at most 20000000 0.125 0.125 true/);
  t.match(child("lots"), /TOKENLOOM_DEVICE_MEMORY is no positive number of bytes/);
});

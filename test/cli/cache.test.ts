import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { tiny, tokenloom } from "./program.js";

const text = "The queen looked at the garden and said that it was late. The king said that the roses were red. ".repeat(3);

t.test("cache cuts a prompt's cache by every policy and draws what stayed", async (t) => {
  const folder = t.testdir({ "prompt.txt": text }), svg = join(folder, "cache.svg");
  for (const policy of ["streaming:48", "h2o:48", "tova:48", "snapkv:48", "pyramidkv:48", "adakv:48", "knorm:50%", "keydiff:50%", "expected:50%", "valuenorm:48", "random:48"]) {
    const { code, stdout, stderr } = await tokenloom(["cache", tiny, "--prompt-file", join(folder, "prompt.txt"), "--policy", policy, "--svg", svg, "--max-tokens", "4", "--json"]);
    t.equal(code, 0, stderr);
    const { kept, tokens, bytes, fullBytes } = JSON.parse(stdout) as { kept: number[][][]; tokens: number; bytes: number; fullBytes: number };
    const budget = policy.endsWith("%") ? Math.trunc(tokens / 2) : 48, lengths = kept.flat().map((positions) => positions.length);
    t.equal(lengths.reduce((sum, length) => sum + length, 0) / lengths.length <= budget, true, `${policy}: ${lengths.join()} tokens`);
    t.ok(bytes < fullBytes);
    t.ok(kept.flat().every((positions) => positions.every((position, i) => position < tokens && (i === 0 || position > positions[i - 1]!))));
    const drawn = readFileSync(svg, "utf8");
    t.equal(drawn.match(/<path /g)?.length, kept.flat().length, "a line a layer and head");
  }
});

t.test("wrong input of cache", async (t) => {
  const file = join(t.testdir({}), "empty.txt");
  writeFileSync(file, "");
  for (const [args, message] of [
    [[], /--policy/], [["--policy", "snapkv:64"], /one of --prompt and --prompt-file/], [["--policy", "magic:64", "--prompt", "x"], /one of streaming, h2o/], [["--policy", "snapkv", "--prompt", "x"], /snapkv:256 or snapkv:25%/],
    [["--policy", "snapkv:64", "--prompt-file", file], /prompt is empty/], [["--policy", "snapkv:0", "--prompt", "x"], /budget/],
  ] as const) {
    const { code, stderr } = await tokenloom(["cache", tiny, ...args]);
    t.not(code, 0);
    t.match(stderr, message);
  }
});

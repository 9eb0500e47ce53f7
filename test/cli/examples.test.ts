import { readdirSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { encoderFolder, tinyBert } from "../support/encoders.js";
import { scratch } from "../support/paths.js";
import { root, runProgram, tiny } from "./program.js";

const shown: Record<string, RegExp> = {
  "start.mjs": /prompt +\d+ tokens at \d+ tokens\/s\nanswer +\d+ tokens at \d+ tokens\/s\nmemory +.*weights.*\nmachine +\w+, \d+ cores/,
  "chat.mjs": /> Say that in five words\.\n[^]*tokens computed for this turn's prompt/,
  "abort.mjs": /\[left the loop: \d+ tokens/,
  "score.mjs": /tokens, perplexity \d/,
  "two-sessions.mjs": /caches left: 0 bytes/,
  "search.mjs": /> Who mends[^]*\n-?\d\.\d{3} {2}/,
  "picture.mjs": /all tokens: 10 of 10 tokens, a vector of 16, \d+ ms\nmerged: \d of 10 tokens/,
};
/** Examples of encoders, and the model each takes here. */
const encoders: Record<string, (t: Parameters<typeof scratch>[0]) => string> = { "search.mjs": (t) => tinyBert(scratch(t)), "picture.mjs": () => join(encoderFolder, "dinov2") };

const programs = readdirSync(join(root, "examples")).filter((name) => name.endsWith(".mjs") && name !== "model.mjs");
t.same(programs.sort(), Object.keys(shown).sort(), "every example has a test");

for (const name of programs) {
  t.test(name, async (t) => {
    const { code, stdout, stderr } = await runProgram(`examples/${name}`, [], { env: { TOKENLOOM_MODEL: encoders[name]?.(t) ?? tiny } });
    t.equal(code, 0, stderr);
    t.equal(stderr, "");
    t.match(stdout, shown[name] ?? /^$/);
  });
}

t.test("start.mjs goes on with the tiny model where nothing can be fetched", async (t) => {
  // Nothing listens on these ports.
  const env = { TOKENLOOM_MODEL: "", TOKENLOOM_MODELS: "", TOKENLOOM_CACHE: t.testdir({}), HF_ENDPOINT: "http://127.0.0.1:40001", PIP_INDEX_URL: "http://127.0.0.1:40001", PIP_NO_CACHE_DIR: "1" };
  const { code, stdout, stderr } = await runProgram("examples/start.mjs", ["Once", "upon", "a", "time"], { env });
  t.equal(code, 0, stderr);
  t.match(stderr, /could not be fetched[^]*TOKENLOOM_MODELS[^]*tiny model/);
  t.match(stdout, /> Once upon a time/);
  t.match(stdout, shown["start.mjs"] ?? /^$/);
});

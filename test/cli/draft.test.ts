import { readFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { tiny, tokenloom } from "./program.js";

t.test("draft writes the same text and draws the trees", async (t) => {
  const svg = join(t.testdir({}), "trees.svg");
  for (const drafter of ["recycling", "prompt-lookup", "suffix-lookup", "lookahead", "combine"]) {
    const { code, stdout, stderr } = await tokenloom(["draft", tiny, "--prompt", "One & two, three, one & two, three,", "--drafter", drafter, "--nodes", "8", "--max-tokens", "24", "--svg", svg, "--json"]);
    t.equal(code, 0, stderr);
    const { same, drafted, text } = JSON.parse(stdout);
    t.equal(same, true);
    t.equal(drafted.generatedTokens, 24);
    t.ok(text.length > 0);
    const drawn = readFileSync(svg, "utf8");
    t.match(drawn, /^<svg [^>]*viewBox/);
    t.equal(drawn.match(/class="step"/g)?.length, drafted.draft.steps, "a tree a step");
    t.notMatch(drawn, /&(?!#\d+;)/, "text is escaped");
  }
});

t.test("wrong input of draft", async (t) => {
  for (const [args, message] of [
    [["draft", tiny], /--prompt/], [["draft", tiny, "--prompt", ""], /prompt is empty/], [["draft", tiny, "--prompt", "x", "--drafter", "magic"], /Allowed choices/],
    [["draft", tiny, "--prompt", "x", "--nodes", "99"], /1 to 64/],
  ] as const) {
    const { code, stderr } = await tokenloom([...args]);
    t.not(code, 0);
    t.match(stderr, message);
  }
});

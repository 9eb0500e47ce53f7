import { writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { loadModel } from "tokenloom";
import { tiny, tokenloom } from "./program.js";

const text = "The king gave his daughter a golden ring.";

t.test("score prints what the library gives", async (t) => {
  using model = await loadModel(tiny);
  const expected = await model.score(text, { top: 5 });
  const folder = t.testdir({ "text.txt": text, "ids.json": JSON.stringify(expected.ids) });
  for (const source of [["--file", join(folder, "text.txt")], ["--ids", JSON.stringify(expected.ids)], ["--ids", join(folder, "ids.json")]]) {
    const { code, stdout, stderr } = await tokenloom(["score", tiny, ...source, "--top", "5", "--json"]);
    t.equal(code, 0);
    t.equal(stderr, "");
    const json = JSON.parse(stdout);
    t.same(Object.keys(json), ["ids", "perplexity", "top_ids", "top_logits"]);
    t.same(json.ids, expected.ids);
    t.equal(json.perplexity, expected.perplexity);
    t.same(json.top_ids, expected.topIds);
    t.same(json.top_logits, expected.topLogits);
    t.equal(json.top_ids.length, expected.ids.length);
    t.equal(json.top_ids[0].length, 5);
  }
  const piped = await tokenloom(["score", tiny, "--file", "-"], { input: text });
  t.match(piped.stdout, new RegExp(`^${expected.ids.length} tokens, perplexity ${expected.perplexity.toFixed(4)},`));
});

t.test("wrong input of score", async (t) => {
  const folder = t.testdir({});
  const file = join(folder, "ids.json");
  writeFileSync(file, "{}");
  const usage: [string[], RegExp][] = [
    [[], /one of --file and --ids/],
    [["--ids", "[1]", "--file", file], /one of --file and --ids/],
    [["--ids", file], /array of integers/],
    [["--ids", "[1, 2.5]"], /array of integers/],
    [["--ids", "[1,"], /not JSON/],
  ];
  for (const [args, message] of usage) {
    const { code, stderr } = await tokenloom(["score", tiny, ...args]);
    t.equal(code, 2, args.join(" "));
    t.match(stderr, message);
  }
  for (const args of [["--ids", "[]"], ["--ids", "[-1]"], ["--ids", "[99999999]"], ["--ids", "[1,2]", "--top", "0"], ["--file", join(folder, "absent.txt")]]) {
    const { code, stderr } = await tokenloom(["score", tiny, ...args]);
    t.equal(code, 1, args.join(" "));
    t.match(stderr, /^tokenloom: [^\n]+\n$/);
  }
});

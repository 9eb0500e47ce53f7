import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import sharp from "sharp";
import t from "tap";
import { root, tokenloom } from "./program.js";

const model = join(root, "test", "fixtures", "encoders", "dinov2");

t.test("see and compare draw what a reduction did", async (t) => {
  const folder = t.testdir({}), image = join(folder, "image.png");
  await sharp({ create: { width: 40, height: 30, channels: 3, background: "#c84" } }).png().toFile(image);

  const png = join(folder, "overlay.png"), seen = await tokenloom(["see", model, image, "--reduce", "toMe:2", "--out", png, "--json"]);
  t.equal(seen.code, 0, seen.stderr);
  const told = JSON.parse(seen.stdout);
  t.ok(told.tokensLeft < told.tokens, `${told.tokensLeft} of ${told.tokens}`);
  t.ok(told.embeddingCosine > 0.5 && told.embeddingCosine <= 1 + 1e-6);
  t.equal((await sharp(png).metadata()).format, "png");

  const svg = join(folder, "overlay.svg");
  t.match((await tokenloom(["see", model, image, "--reduce", "eVit:0.5@0", "--out", svg])).stdout, /tokens +\d+ +\d+/);
  t.match(readFileSync(svg, "utf8"), /^<svg [^]*of \d+ tokens[^]*<rect [^]*<\/svg>\n$/);

  const html = join(folder, "new", "table.html"), compared = await tokenloom(["compare", model, image, image, "--runs", "1", "--pictures", "1", "--reduce", "toMe:1", "--reduce", "divPrune:0.5@0", "--out", html, "--json"]);
  t.equal(compared.code, 0, compared.stderr);
  t.same(JSON.parse(compared.stdout).rows.map(({ reduce }: { reduce: string }) => reduce), ["all tokens", "toMe:1", "divPrune:0.5@0"]);
  t.ok(statSync(html).size > 1000);
  t.equal(readFileSync(html, "utf8").match(/<svg /g)?.length, 3, "a picture a row");
});

t.test("what cannot be is said in one line", async (t) => {
  for (const [args, message] of [
    [["see", model, "x.png", "--reduce", "magic:2", "--out", "a.png"], /Expected a reduction such as toMe:13/],
    [["see", model, "x.png", "--reduce", "toMe:2", "--out", "a.gif"], /\.png or \.svg/],
    [["see", model, "x.png", "--reduce", "toMe:2@1", "--out", "a.png"], /toMe has no layers to choose/],
    [["see", model, "x.png", "--reduce", "eVit:0.5@99", "--out", "a.png"], /layers 0 to \d+, not 99/],
    [["see", model, "x.png", "--reduce", "eVit:7", "--out", "a.png"], /keepRate/],
  ] as const) {
    const { code, stderr } = await tokenloom(args);
    t.not(code, 0);
    t.match(stderr, message);
  }
});

import { readFileSync } from "node:fs";
import { join } from "node:path";
import sharp from "sharp";
import t from "tap";
import { encoderFolder, expectedEncodings, largestDifference, tinyBert, tinyText } from "../support/encoders.js";
import { scratch } from "../support/paths.js";
import { isOneLine, tiny, tokenloom } from "./program.js";

t.test("embed prints vectors of texts, one a line", async (t) => {
  const folder = scratch(t), model = tinyBert(folder), expected = expectedEncodings("bert"), lines = expected.map(({ ids }) => tinyText(ids!)).join("\n");
  const file = folder.write("lines.txt", `${lines}\n\n`);
  const { code, stdout, stderr } = await tokenloom(["embed", model, file, "--json"]);
  t.equal(code, 0, stderr);
  const { dimension, embeddings } = JSON.parse(stdout) as { dimension: number; embeddings: { input: string; tokens: number; embedding: number[] }[] };
  t.equal(dimension, 16);
  embeddings.forEach(({ embedding, tokens }, i) => {
    t.equal(tokens, expected[i]!.ids!.length);
    t.ok(largestDifference(embedding, expected[i]!.embedding) < 2e-5);
  });
  const piped = await tokenloom(["embed", model], { input: lines });
  t.equal(piped.stdout.trim().split("\n").length, expected.length);
  t.ok(largestDifference(piped.stdout.split("\n")[0]!.split(" ").map(Number), expected[0]!.embedding) < 2e-5);
});

t.test("embed reads images and merges tokens", async (t) => {
  const [{ pixels = [], size = 0, embedding: wanted } = { embedding: [] }] = expectedEncodings("vit");
  const image = scratch(t).write("image.png", await sharp(Uint8Array.from(pixels), { raw: { width: size, height: size, channels: 3 } }).png().toBuffer());
  const { code, stdout } = await tokenloom(["embed", join(encoderFolder, "vit"), image, "--json"]);
  t.equal(code, 0);
  t.ok(largestDifference(JSON.parse(stdout).embeddings[0].embedding, wanted) < 2e-5);
  const merged = await tokenloom(["embed", join(encoderFolder, "vit"), image, "--json", "--reduce", "toMe:2"]);
  t.equal(JSON.parse(merged.stdout).embeddings[0].tokensLeft, 6);
});

t.test("see and compare draw tokens", async (t) => {
  const folder = scratch(t), image = folder.write("image.png", await sharp({ create: { width: 50, height: 40, channels: 3, background: { r: 200, g: 60, b: 60 } } }).png().toBuffer());
  const vit = join(encoderFolder, "vit"), out = join(folder.path, "tokens.png"), page = join(folder.path, "table.html");
  const seen = await tokenloom(["see", vit, image, "--reduce", "toMe:2", "--out", out, "--json"]);
  t.equal(seen.code, 0, seen.stderr);
  const { tokens, tokensLeft } = JSON.parse(seen.stdout) as { tokens: number; tokensLeft: number };
  t.same([tokens, tokensLeft], [10, 6]);
  const { width, height } = await sharp(out).metadata();
  t.same([width, height], [2 * (24 + 4 + 24), 2 * 24], "two panels, each pixel twice as large");
  const compared = await tokenloom(["compare", vit, image, "--reduce", "toMe:2", "--reduce", "divPrune:0.5", "--out", page, "--json"]);
  t.equal(compared.code, 0, compared.stderr);
  const { rows } = JSON.parse(compared.stdout) as { rows: { method: string; tokens: number; agreement: number }[] };
  t.same(rows.map(({ method }) => method), ["none", "toMe:2", "divPrune:0.5"]);
  t.ok(Math.abs(rows[0]!.agreement - 1) < 1e-6);
  t.match(readFileSync(page, "utf8"), /<td>toMe:2<td>image\.png<td>6<td>.*data:image\/png;base64/);
});

t.test("wrong use of embed", async (t) => {
  const vit = join(encoderFolder, "vit"), failures: [string[], number, RegExp][] = [
    [["embed", vit], 2, /at least one image/],
    [["embed", vit, "absent.png"], 1, /an image that can be read for input\[0\]/],
    [["embed", vit, "absent.png", "--reduce", "toMe:x"], 2, /a reduction such as toMe:13/],
    [["embed", tiny], 1, /an encoder but .* is a language model/],
    [["run", vit, "Hello"], 1, /a language model but .* is an encoder/],
  ];
  for (const [args, status, message] of failures) {
    const { code, stderr } = await tokenloom(args);
    t.equal(code, status, args.join(" "));
    t.match(stderr, message);
    t.ok(isOneLine(stderr));
  }
});

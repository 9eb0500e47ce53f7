import assert from "node:assert/strict";
import t from "tap";
import { scratch } from "../support/paths.js";
import fc from "../support/property.js";
import { golden, sentencePieceMetadata, tokenizerOf } from "../support/tokenizers.js";

t.test("gives what llama.cpp gives", async (t) => {
  const folder = scratch(t);
  for (const [name, extra] of [["plain", {}], ["noprefix", { "tokenizer.ggml.add_space_prefix": false }]] as const) {
    const tokenizer = await tokenizerOf(folder, { ...sentencePieceMetadata(), ...extra });
    const expected = golden.spm[name];
    const wrong = golden.texts.filter((text, index) => JSON.stringify(tokenizer.encode(text)) !== JSON.stringify(expected.ids[index]));
    t.same(wrong, [], name);
    t.same(tokenizer.encode(golden.texts[golden.texts.length - 2]!, { special: true }), expected.special);
    t.same([...tokenizer.eosIds], expected.eog);
    t.equal(tokenizer.addBos, expected.addBos);
    // After <tool> a space is put in, as before the whole text.
    for (const text of golden.texts) if (!text.includes("<tool>") && tokenizer.decode(tokenizer.encode(text), { special: true }) !== text) t.fail(`${name} does not give ${JSON.stringify(text)} back`);
  }
});

/** The definition, word for word: join the neighbours of the best score, of equal ones the leftmost, until none can be joined. */
function reference(text: string, tokens: readonly string[], scores: readonly number[]): number[] {
  const ids = new Map(tokens.map((token, id) => [token, id]));
  const symbols = [...` ${text}`.replaceAll(" ", "\u2581")];
  for (;;) {
    let best = -1, bestScore = Number.NEGATIVE_INFINITY;
    for (let index = 1; index < symbols.length; index++) {
      const id = ids.get(symbols[index - 1]! + symbols[index]!);
      if (id !== undefined && scores[id]! > bestScore) [best, bestScore] = [index, scores[id]!];
    }
    if (best < 0) break;
    symbols.splice(best - 1, 2, symbols[best - 1]! + symbols[best]!);
  }
  return symbols.flatMap((symbol) => ids.get(symbol) ?? [...Buffer.from(symbol)].map((byte) => ids.get(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`)!));
}

t.test("any text: as the definition says, and back", async (t) => {
  const tokenizer = await tokenizerOf(scratch(t), sentencePieceMetadata());
  const { tokens, scores } = golden.spm;
  const text = fc.array(fc.oneof(fc.constantFrom(...golden.texts), fc.constantFrom(" ", "\u2581", "\n", "日本", "😀"), fc.string({ unit: "binary", maxLength: 5 })), { maxLength: 6 })
    .map((parts) => parts.join("").replaceAll("<tool>", ""));
  await fc.assert(fc.asyncProperty(text, async (some) => {
    const ids = tokenizer.encode(some);
    assert.deepEqual(ids, some === "" ? [] : reference(some, tokens, scores));
    assert.deepEqual(await tokenizer.encodeAsync(some), ids);
    // ▁ itself is written as a space.
    assert.equal(tokenizer.decode(ids, { special: true }), some.replaceAll("\u2581", " "));
  }), { numRuns: 200 });
});

t.test("long texts leave the event loop free", async (t) => {
  const tokenizer = await tokenizerOf(scratch(t), sentencePieceMetadata());
  const text = golden.texts.join(" ").repeat(30);
  let turns = 0, running = true;
  const count = (): void => void (running && setImmediate(() => (turns++, count())));
  count();
  const ids = await tokenizer.encodeAsync(text);
  running = false;
  t.ok(turns > 10);
  t.same(ids, tokenizer.encode(text));
  const controller = new AbortController();
  setTimeout(() => controller.abort(), 2);
  await t.rejects(tokenizer.encodeAsync(text, { signal: controller.signal }), { name: "AbortError" });
});

t.test("files with broken vocabularies", async (t) => {
  const folder = scratch(t);
  const metadata = sentencePieceMetadata();
  await t.rejects(tokenizerOf(folder, { ...metadata, "tokenizer.ggml.scores": new Float32Array(3) }), { name: "ModelFormatError", message: /numbers for tokenizer\.ggml\.scores but received 3/ });
  await t.rejects(tokenizerOf(folder, { ...metadata, "tokenizer.ggml.scores": new Float32Array(golden.spm.scores.length).fill(Number.NaN) }), { name: "ModelFormatError", message: /finite numbers for tokenizer\.ggml\.scores/ });
  // A byte token that is none stays text: it must not become an index.
  const tokens = golden.spm.tokens.map((token) => (token === "<0x41>" ? "<0x-1>" : token));
  const tokenizer = await tokenizerOf(folder, { ...metadata, "tokenizer.ggml.tokens": tokens });
  t.equal(Buffer.from(tokenizer.tokenBytes(tokens.indexOf("<0x-1>"))).toString(), "<0x-1>");
});

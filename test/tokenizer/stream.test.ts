import assert from "node:assert/strict";
import t from "tap";
import { scratch } from "../support/paths.js";
import fc from "../support/property.js";
import { bytePairMetadata, golden, sentencePieceMetadata, tokenizerOf } from "../support/tokenizers.js";

t.test("streams give whole characters, and all of them", async (t) => {
  const tokenizer = await tokenizerOf(scratch(t), bytePairMetadata("smollm"));
  fc.assert(fc.property(fc.string({ unit: "binary", maxLength: 40 }), (text) => {
    const stream = tokenizer.stream();
    const pieces = tokenizer.encode(text).map((id) => stream.push(id));
    assert.ok(pieces.every((piece) => !piece.includes("\ufffd") || text.includes("\ufffd")));
    assert.equal(pieces.join("") + stream.end(), text);
  }), { numRuns: 300 });
  const stream = tokenizer.stream();
  t.equal(stream.push(golden.bpe.tokens.indexOf("Ã")), "", "half of é");
  t.equal(stream.end(), "\ufffd", "a character that was never completed");
  t.equal(tokenizer.decode(tokenizer.encode("\ufeffx")), "\ufeffx");
});

t.test("special tokens are shown where asked for", async (t) => {
  const tokenizer = await tokenizerOf(scratch(t), bytePairMetadata("smollm"));
  const end = tokenizer.eosIds[0]!;
  t.equal(tokenizer.isSpecial(end), true);
  t.equal(tokenizer.isSpecial(golden.bpe.tokens.indexOf("<tool>")), false);
  t.equal(tokenizer.decode([end]), "");
  t.equal(tokenizer.decode([end], { special: true }), "<|im_end|>");
  t.equal(tokenizer.stream().push(end), "");
  t.equal(tokenizer.stream({ special: true }).push(end), "<|im_end|>");
  t.equal(tokenizer.tokenText(end), "<|im_end|>");
  t.equal(tokenizer.tokenText(golden.bpe.tokens.indexOf("Ġ")), " ");
  t.equal(tokenizer.tokenText(golden.bpe.tokens.indexOf("Ã")), "<0xC3>");
  t.same(tokenizer.tokenBytes(golden.bpe.tokens.indexOf("Ã")), new Uint8Array([0xc3]));
  for (const wrong of [-1, 0.5, tokenizer.vocabulary, Number.NaN, "1"]) {
    t.throws(() => tokenizer.tokenBytes(wrong as number), { name: "ArgumentError" });
    t.throws(() => tokenizer.decode([wrong as number]), { name: "ArgumentError" });
    t.throws(() => tokenizer.stream().push(wrong as number), { name: "ArgumentError" });
  }
});

t.test("the space before a text is not part of it, the one before a continuation is", async (t) => {
  const tokenizer = await tokenizerOf(scratch(t), sentencePieceMetadata());
  const ids = tokenizer.encode("the cat");
  t.equal(tokenizer.decode(ids), "the cat");
  const stream = tokenizer.stream();
  t.equal(ids.map((id) => stream.push(id)).join("") + stream.end(), " the cat");
});

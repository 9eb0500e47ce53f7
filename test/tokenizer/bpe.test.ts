import { Tokenizer as LibraryTokenizer } from "@huggingface/tokenizers";
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import t from "tap";
import { ModelFormatError } from "#lib/errors.js";
import { openGguf } from "#lib/models/gguf.js";
import { openModel } from "#lib/models/open.js";
import { createTokenizer, type Tokenizer } from "#lib/tokenizer/tokenizer.js";
import { writeGguf } from "../support/gguf-writer.js";
import { modelPath, scratch, sharedFile, skipWithout, SMOLLM2 } from "../support/paths.js";
import fc from "../support/property.js";
import { bytePairMetadata, golden, tokenizerOf } from "../support/tokenizers.js";

t.test("every pre-tokenizer gives what llama.cpp gives", async (t) => {
  const folder = scratch(t);
  for (const [pre, expected] of Object.entries(golden.bpe.results)) {
    const tokenizer = await tokenizerOf(folder, bytePairMetadata(pre));
    const wrong = golden.texts.filter((text, index) => JSON.stringify(tokenizer.encode(text)) !== JSON.stringify(expected.ids[index]));
    t.same(wrong, [], `${pre}: ${golden.texts.length} texts`);
    t.same(tokenizer.encode(golden.texts[golden.texts.length - 2]!, { special: true }), expected.special, `${pre}: special tokens`);
    t.same([...tokenizer.eosIds].sort((a, b) => a - b), expected.eog, `${pre}: tokens that end a generation`);
    t.equal(tokenizer.addBos, expected.addBos, `${pre}: BOS`);
    for (const text of golden.texts) if (tokenizer.decode(tokenizer.encode(text)) !== text) t.fail(`${pre} does not give ${JSON.stringify(text)} back`);
  }
});

type Encoder = { encode(text: string, options: { add_special_tokens: boolean }): { ids: number[] } };

/** The same vocabulary in the library, which has its own byte-pair encoding. */
function libraryTokenizer(tokens: readonly string[], types: readonly number[], merges: readonly string[]): Encoder {
  const added = tokens.map((content, id) => ({ id, content, special: types[id] === 3, single_word: false, lstrip: false, rstrip: false, normalized: false }))
    .filter(({ id }) => types[id] === 3 || types[id] === 4);
  const digits = { type: "Split", pattern: { Regex: "\\p{N}" }, behavior: "Isolated", invert: false };
  const pre_tokenizer = { type: "Sequence", pretokenizers: [digits, { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true }] };
  const model = { type: "BPE", vocab: Object.fromEntries(tokens.map((token, id) => [token, id])), merges, unk_token: null, fuse_unk: false, byte_fallback: false, ignore_merges: false };
  const make = LibraryTokenizer as unknown as new (tokenizer: object, config: object) => Encoder;
  return new make({ version: "1.0", added_tokens: added, normalizer: null, pre_tokenizer, post_processor: null, decoder: { type: "ByteLevel" }, model }, {});
}

/** Any text but U+FEFF and U+0085, which the library takes for white space and not for white space, the wrong way round. */
const anyText = fc.array(fc.oneof(
  { weight: 4, arbitrary: fc.constantFrom("the", " and", "'s", " ", "  ", "\n", "\t", "12", "½", "é", "e\u0301", "日本", "😀", "...", "x", "<tool>", "<|im_end|>", "\u0000", "\u2028", "\u2029") },
  { weight: 2, arbitrary: fc.string({ unit: "grapheme", maxLength: 4 }) },
  { weight: 2, arbitrary: fc.string({ unit: "binary", maxLength: 3 }) },
), { maxLength: 30 }).map((parts) => parts.join("").replace(/[\ufeff\u0085]/g, ""));

t.test("any text: as the library encodes it, and back", async (t) => {
  const folder = scratch(t);
  const tokenizer = await tokenizerOf(folder, bytePairMetadata("smollm"));
  const { tokens, types, merges } = golden.bpe;
  const library = libraryTokenizer(tokens, types, merges);
  fc.assert(fc.property(anyText, (text) => {
    const ids = tokenizer.encode(text, { special: true });
    assert.deepEqual(ids, library.encode(text, { add_special_tokens: false }).ids);
    assert.equal(tokenizer.decode(ids, { special: true }), text);
  }), { numRuns: 500 });
});

t.test("lone surrogates become U+FFFD, as in every UTF-8 encoder", async (t) => {
  const tokenizer = await tokenizerOf(scratch(t), bytePairMetadata("smollm"));
  t.same(tokenizer.encode("a\ud800b\udc00"), tokenizer.encode("a\ufffdb\ufffd"));
});

t.test("encodeAsync gives the same, in slices, at any chunk boundary", async (t) => {
  const folder = scratch(t);
  for (const pre of ["smollm", "llama-bpe", "tekken", "default", "deepseek-v3"]) {
    const tokenizer = await tokenizerOf(folder, bytePairMetadata(pre));
    await fc.assert(fc.asyncProperty(fc.array(fc.constantFrom(...golden.texts), { minLength: 20, maxLength: 400 }), fc.constantFrom("", " ", "\n", " word word "), async (texts, between) => {
      const text = texts.join(between);
      // Line by line there is no chunk long enough to be cut; a line feed ends a piece in none of these rules by itself.
      const ids = await tokenizer.encodeAsync(text);
      assert.equal(tokenizer.decode(ids), text);
      assert.deepEqual(ids, tokenizer.encode(text));
    }), { numRuns: 10 });
  }
});

t.test("long texts and long words leave the event loop free, obey a signal and a limit", async (t) => {
  const tokenizer = await tokenizerOf(scratch(t), bytePairMetadata("smollm"));
  for (const text of ["the cat sat. ".repeat(40_000), "abcdefghij".repeat(40_000), " ".repeat(400_000), "日".repeat(200_000)]) {
    let turns = 0, running = true;
    const count = (): void => void (running && setImmediate(() => (turns++, count())));
    count();
    const ids = await tokenizer.encodeAsync(text);
    running = false;
    t.ok(turns > 10, `${turns} turns of the event loop`);
    t.equal(tokenizer.decode(ids), text);
    const controller = new AbortController();
    setTimeout(() => controller.abort(), 5);
    await t.rejects(tokenizer.encodeAsync(text + text, { signal: controller.signal }), { name: "AbortError" });
    await t.rejects(tokenizer.encodeAsync(text, { limit: 100 }), { name: "ContextOverflowError", message: /at most 100 tokens/ });
  }
  t.same(await tokenizer.encodeAsync("the cat", { limit: tokenizer.encode("the cat").length }), tokenizer.encode("the cat"));
  t.throws(() => tokenizer.encode(7 as never), { name: "ArgumentError" });
  await t.rejects(tokenizer.encodeAsync(undefined as never), { name: "ArgumentError" });
});

t.test("several encodings at once do not disturb each other", async (t) => {
  const tokenizer = await tokenizerOf(scratch(t), bytePairMetadata("llama-bpe"));
  const texts = golden.texts.map((text) => text.repeat(50));
  const together = await Promise.all(texts.map((text) => tokenizer.encodeAsync(text)));
  t.same(together, texts.map((text) => tokenizer.encode(text)));
});

t.test("begin and end of a sequence", async (t) => {
  const tokenizer = await tokenizerOf(scratch(t), bytePairMetadata("llama-bpe"));
  const { bosId, eosIds } = tokenizer;
  const plain = tokenizer.encode("hello");
  t.same(tokenizer.encode("hello", { bos: true, eos: true }), [bosId, ...plain, eosIds[0]]);
  t.same(tokenizer.encode("<|im_start|>hello", { bos: true, special: true }), [bosId, ...plain], "a template that begins with BOS gets no second one");
  t.same(tokenizer.encode("", { bos: true }), [bosId]);
  t.same([tokenizer.bosToken, tokenizer.eosToken], ["<|im_start|>", "<|im_end|>"]);
});

t.test("refuses what cannot be right", async (t) => {
  const folder = scratch(t);
  const refuse = async (change: Record<string, unknown>, message: RegExp): Promise<void> => {
    const metadata = Object.fromEntries(Object.entries({ ...bytePairMetadata("smollm"), ...change }).filter(([, value]) => value !== undefined));
    await t.rejects(tokenizerOf(folder, metadata as never), { name: "ModelFormatError", message });
  };
  const { tokens } = golden.bpe;
  await refuse({ "tokenizer.ggml.pre": "made-up" }, /known pre-tokenizer for tokenizer\.ggml\.pre but received 'made-up'; known are default/);
  await refuse({ "tokenizer.ggml.model": "rwkv" }, /'gpt2' or 'llama' for tokenizer\.ggml\.model but received 'rwkv'/);
  await refuse({ "tokenizer.ggml.model": undefined }, /no such key/);
  await refuse({ "tokenizer.ggml.tokens": undefined }, /strings for tokenizer\.ggml\.tokens/);
  await refuse({ "tokenizer.ggml.merges": undefined }, /strings for tokenizer\.ggml\.merges/);
  await refuse({ "tokenizer.ggml.tokens": tokens.with(600, "A") }, /token once but tokens/);
  await refuse({ "tokenizer.ggml.token_type": new Int32Array(3) }, /numbers for tokenizer\.ggml\.token_type but received 3/);
  await refuse({ "tokenizer.ggml.eos_token_id": tokens.length }, /token in 0 … \d+ for tokenizer\.ggml\.eos_token_id/);
  await refuse({ "tokenizer.ggml.add_bos_token": "yes" }, /a boolean for tokenizer\.ggml\.add_bos_token/);
});

t.test("mutated vocabularies are refused or work", async (t) => {
  const { write } = scratch(t);
  const bytes = writeGguf({ metadata: bytePairMetadata("smollm") });
  const file = write("mutant.gguf", bytes);
  const edit = fc.record({ at: fc.nat(bytes.length - 1), value: fc.nat(255), width: fc.constantFrom(1, 1, 8, 300) });
  await fc.assert(fc.asyncProperty(fc.array(edit, { minLength: 1, maxLength: 5 }), async (edits) => {
    const mutant = Uint8Array.from(bytes);
    for (const { at, value, width } of edits) mutant.fill(value, at, at + width);
    writeFileSync(file, mutant);
    try {
      const tokenizer = await createTokenizer(await openGguf(file));
      const ids = tokenizer.encode(golden.texts.join(""), { special: true, bos: true, eos: true });
      tokenizer.decode(ids);
      return ids.every((id) => id >= 0 && id < tokenizer.vocabulary);
    } catch (error) {
      if (!(error instanceof ModelFormatError)) throw error;
      return true;
    }
  }), { numRuns: 300 });
});

const model = modelPath(SMOLLM2), oracle = sharedFile("oracles", "smollm2", "smollm2.json"), prose = sharedFile("data", "prose", "alice.txt");
t.test("SmolLM2: ids of the oracle, prose as the library encodes it whole", { skip: skipWithout({ [SMOLLM2]: model, "shared/oracles": oracle }) }, async (t) => {
  const file = await openModel(model!);
  const tokenizer: Tokenizer = await createTokenizer(file);
  interface Case { text: string; ids: number[]; decoded: string }
  const { tokens, greedy, chat, score } = JSON.parse(readFileSync(oracle!, "utf8")) as { tokens: Case[]; score: Case[]; greedy: { prompt: string; ids: number[] }[]; chat: { rendered: string; ids: number[] }[] };
  for (const { text, ids, decoded } of tokens) {
    t.same(tokenizer.encode(text, { special: true }), ids, JSON.stringify(text));
    t.equal(tokenizer.decode(ids, { special: true }), decoded);
  }
  for (const { prompt, ids } of greedy) t.same(tokenizer.encode(prompt), ids, prompt);
  for (const { rendered, ids } of chat) t.same(tokenizer.encode(rendered, { special: true }), ids);
  for (const { text, ids } of score) t.same(tokenizer.encode(text), ids);
  t.same([tokenizer.bosId, tokenizer.addBos, tokenizer.eosIds[0], tokenizer.vocabulary], [1, false, 2, 49152]);
  if (prose === undefined) return;
  const text = readFileSync(prose, "utf8");
  const library = libraryTokenizer(file.metadata.strings("tokenizer.ggml.tokens")!, [...file.metadata.numbers("tokenizer.ggml.token_type")!], file.metadata.strings("tokenizer.ggml.merges")!);
  t.same(await tokenizer.encodeAsync(text), library.encode(text, { add_special_tokens: false }).ids);
});

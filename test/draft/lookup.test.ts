import assert from "node:assert/strict";
import t from "tap";
import { DraftTree, lookahead, LookaheadPool, lookupPrompt, lookupSuffix, promptLookup, suffixLookup, type Drafter, type SuffixLookupMatch } from "tokenloom";
import fc from "../support/property.js";

const texts = fc.oneof(fc.array(fc.nat(2), { maxLength: 120 }), fc.array(fc.nat(6), { maxLength: 120 }), fc.array(fc.nat(3), { maxLength: 12 }).map((part) => [...part, ...part, ...part, ...part]));

/** The longest suffix of `tokens` that stands before a token of `text`, by trying all places. */
function naiveSuffix(tokens: readonly number[], text: readonly number[], cap: number): { match: number; start: number } {
  let best = { match: 0, start: -1 };
  for (let e = 1; e < text.length; e++) {
    if (text[e] < 0) continue;
    let l = 0;
    while (l < Math.min(cap, e, tokens.length) && text[e - 1 - l] >= 0 && text[e - 1 - l] === tokens[tokens.length - 1 - l]) l++;
    if (l > 0 && l >= best.match) best = { match: l, start: e };
  }
  return best;
}

function naiveLookup(tokens: readonly number[], corpus: readonly number[], { minMatch, maxMatch, numTokens }: { minMatch: number; maxMatch: number; numTokens: number }): SuffixLookupMatch {
  const own = naiveSuffix(tokens, tokens, maxMatch), quoted = naiveSuffix(tokens, corpus, maxMatch), fromCorpus = quoted.match > own.match, { match, start } = fromCorpus ? quoted : own;
  if (match < Math.max(1, minMatch)) return { draft: [], start: -1, match: 0, fromCorpus: false };
  const text = fromCorpus ? corpus : tokens, end = text.findIndex((token, i) => i >= start && token < 0);
  return { draft: text.slice(start, Math.min(start + numTokens, end < 0 ? text.length : end)), start, match, fromCorpus };
}

const limits = fc.record({ minMatch: fc.nat(3), maxMatch: fc.constantFrom(1, 2, 3, 5, 16, 1000), numTokens: fc.integer({ min: 1, max: 12 }) });
const corpora = fc.array(fc.array(fc.nat(3), { maxLength: 40 }), { maxLength: 4 });

t.test("the automaton finds what trying all places finds", (t) => {
  fc.assert(
    fc.property(texts, corpora, limits, (tokens, several, options) => {
      const corpus = several.flatMap((text) => [...text, -1]);
      assert.deepEqual(lookupSuffix(tokens, { ...options, corpus }), naiveLookup(tokens, corpus, options));
      assert.deepEqual(lookupSuffix(tokens, options), naiveLookup(tokens, [], options));
    }),
    { numRuns: 400, seed: 1 },
  );
  t.end();
});

t.test("the drafter keeps in step with a text that grows and is cut", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.oneof(fc.array(fc.nat(3), { minLength: 1, maxLength: 9 }), fc.nat(20)), { maxLength: 20 }), corpora, async (changes, several) => {
      const options = { minMatch: 1, maxMatch: 6, numTokens: 5 }, state = suffixLookup({ ...options, branches: 1, texts: several }).open({ vocabulary: 4 }), corpus = several.flatMap((text) => [...text, -1]), tokens: number[] = [];
      for (const change of changes) {
        if (typeof change === "number") {
          tokens.length = Math.min(tokens.length, change);
          state.rewind(tokens.length);
        } else {
          tokens.push(...change);
        }
        if (tokens.length === 0) continue;
        const tree = await state.propose(tokens, 100), { draft } = naiveLookup(tokens, corpus, options);
        if ([...tree.tokens].join() !== [tokens.at(-1)!, ...draft].join()) return false;
      }
      return true;
    }),
    { numRuns: 200, seed: 2 },
  );
});

t.test("several branches are continuations of shorter and shorter suffixes", async (t) => {
  const state = suffixLookup({ branches: 3, numTokens: 2 }).open({ vocabulary: 10 }), tree = await state.propose([1, 2, 3, 7, 2, 3, 8, 3, 9, 1, 2, 3], 10);
  t.same([...tree.tokens], [3, 7, 8, 9, 2, 3, 1]);
  t.same([...tree.parents], [-1, 0, 0, 0, 1, 2, 3]);
  t.ok(tree.probabilities[1] > tree.probabilities[2] && tree.probabilities[2] > tree.probabilities[3]);
  t.equal((await state.propose([1, 2, 3, 7, 2, 3, 8, 3, 9, 1, 2, 3], 3)).size, 3);
});

t.test("prompt lookup tries n-grams from the longest, everywhere", (t) => {
  fc.assert(
    fc.property(texts, fc.integer({ min: 1, max: 5 }), fc.integer({ min: 1, max: 8 }), fc.constantFrom("first" as const, "last" as const), (tokens, maxNgram, numTokens, pick) => {
      let wanted = { draft: [] as number[], start: -1, ngram: 0 };
      for (let g = Math.min(maxNgram, tokens.length - 1); g >= 1 && wanted.ngram === 0; g--) {
        const suffix = tokens.slice(-g).join(), places = tokens.map((_, s) => s).filter((s) => s + g < tokens.length && tokens.slice(s, s + g).join() === suffix);
        if (places.length === 0) continue;
        const start = (pick === "first" ? places[0] : places.at(-1)!) + g;
        wanted = { draft: tokens.slice(start, start + numTokens), start, ngram: g };
      }
      assert.deepEqual(lookupPrompt(tokens, { maxNgram, numTokens, pick }), wanted);
    }),
    { numRuns: 300, seed: 3 },
  );
  t.end();
});

t.test("the pool forgets the oldest first", (t) => {
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.nat(2), fc.array(fc.nat(2), { minLength: 2, maxLength: 2 })), { maxLength: 60 }), fc.integer({ min: 1, max: 5 }), (grams, guessSet) => {
      const pool = new LookaheadPool({ vocabulary: 3, ngram: 3, guessSet }), wanted = new Map<number, string[]>();
      for (const [first, following] of grams) {
        pool.add(first, following);
        wanted.set(first, [...(wanted.get(first) ?? []).filter((text) => text !== following.join()), following.join()].slice(-guessSet));
      }
      return [0, 1, 2].every((first) => pool.guesses(first).map((guess) => guess.join()).join(" ") === (wanted.get(first) ?? []).join(" ") && pool.lengths[first] === (wanted.get(first) ?? []).length);
    }),
    { numRuns: 200, seed: 4 },
  );
  t.end();
});

t.test("lookahead drafts n-grams of the text, and those the model predicted", async (t) => {
  const state = lookahead({ ngram: 3, guessSet: 4 }).open({ vocabulary: 20 }), first = await state.propose([1, 2, 3, 1, 2, 4, 1], 10);
  t.same([...first.tokens], [1, 2, 4, 3]);
  // Behind the rejected node 3 the model predicts 9; behind the root's 1 it predicts 5.
  state.learn({ tree: first, path: Int32Array.of(0), accepted: Int32Array.of(5), top: { k: 1, indices: Int32Array.of(5, 6, 7, 9), values: new Float32Array(4), logSumExp: new Float32Array(4) } });
  const after = await state.propose([1, 2, 3, 1, 2, 4, 1, 5, 2], 10), grams = new Set<string>();
  for (let i = 1; i < after.size; i++) if (after.depths[i] === 2) grams.add(`${after.tokens[after.parents[i]]} ${after.tokens[i]}`);
  t.ok(grams.has("3 9") && grams.has("4 7") && grams.has("3 1"), [...grams].join(", "));
});

t.test("drafters keep to the number of nodes, and their roots are the last token", async () => {
  const drafters: Drafter[] = [promptLookup(), suffixLookup(), lookahead(), suffixLookup({ texts: [[1, 2, 3, 1, 2, 3]] })];
  await fc.assert(
    fc.asyncProperty(fc.array(fc.nat(3), { minLength: 1, maxLength: 60 }), fc.integer({ min: 1, max: 40 }), async (tokens, nodes) => {
      for (const drafter of drafters) {
        using state = drafter.open({ vocabulary: 4 });
        const tree = await state.propose(tokens, nodes);
        if (!(tree instanceof DraftTree) || tree.size > nodes || tree.tokens[0] !== tokens.at(-1)) return false;
      }
      return true;
    }),
    { numRuns: 100, seed: 5 },
  );
});

t.test("wrong options are refused", (t) => {
  for (const options of [{ maxNgram: 0 }, { minNgram: 4 }, { numTokens: 0 }, { pick: "any" as never }]) t.throws(() => promptLookup(options), { name: "ArgumentError" });
  for (const options of [{ maxMatch: 0 }, { minMatch: -1 }, { branches: 0 }, { texts: [["a"]] as never }, { texts: "text" as never }]) t.throws(() => suffixLookup(options), { name: "ArgumentError" });
  for (const options of [{ ngram: 1 }, { guessSet: 0 }]) t.throws(() => lookahead(options), { name: "ArgumentError" });
  t.throws(() => lookupPrompt([1, -2]), { name: "ArgumentError" });
  t.throws(() => lookupSuffix([1], { corpus: "x" as never }), { name: "ArgumentError" });
  t.end();
});

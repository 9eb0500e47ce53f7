import {
  DraftTree, DynamicTree, LookaheadPool, lookupPrompt, lookupSuffix, ops, recyclingTemplate, routeSmallLarge, tensor, verifyGreedy, verifySampled, type PromptLookupOptions, type Tensor, type Verification,
} from "../../index.js";
import { tensorOf, type NamedTensor, type Operation, type Outputs, type Vector } from "./vector.js";

type Result = Tensor | NamedTensor | Int32Array | Float32Array | Uint8Array | number;
type Results = Readonly<Record<string, Result>>;
type Run = (vector: Vector, threads: number) => Promise<Results> | Results;

const ints = (vector: Vector, name: string): Int32Array => tensorOf(vector, `in.${name}`).data as Int32Array;
const floats = (vector: Vector, name: string): Float32Array => tensorOf(vector, `in.${name}`).data as Float32Array;
const intTensor = (vector: Vector, name: string): Tensor<"i32"> => tensor(ints(vector, name).slice(), tensorOf(vector, `in.${name}`).shape);
const floatTensor = (vector: Vector, name: string): Tensor<"f32"> => tensor(floats(vector, name), tensorOf(vector, `in.${name}`).shape);
const number = (vector: Vector, name: string): number => vector.params[name] as number;
const tree = (vector: Vector): DraftTree => new DraftTree(ints(vector, "tokens"), ints(vector, "parents"));

const verified = ({ path, tokens, accepted }: Verification) => ({ path, tokens, accepted });

async function recyclingTree(vector: Vector, threads: number) {
  const parents = intTensor(vector, "parents"), ranks = intTensor(vector, "ranks");
  if (vector.params["template"] === "default" && (recyclingTemplate.parents.join() !== parents.data.join() || recyclingTemplate.ranks.join() !== ranks.data.join())) {
    throw new Error("recyclingTemplate is not the default template");
  }
  return ops.expandTree(intTensor(vector, "matrix"), intTensor(vector, "root"), parents, ranks, { threads });
}

/** Both makers of the mask: the op, and DraftTree's own. */
async function treeMask(vector: Vector, threads: number) {
  const parents = ints(vector, "parents"), past = number(vector, "past"), made = await ops.treeMask(tensor(parents), { past, threads });
  const own = new DraftTree(new Int32Array(parents.length), parents);
  if (own.ancestors().join() !== made.bits.data.join() || own.positions(past).join() !== made.positions.data.join()) throw new Error("DraftTree and ops.treeMask differ");
  return made;
}

/** The model is a table of the next token's log-probabilities by the present one. */
function dynamicTree(vector: Vector): Results {
  const vocabulary = tensorOf(vector, "in.logp").shape[1]!, topK = number(vector, "topK"), table = floats(vector, "logp");
  const growth = new DynamicTree(ints(vector, "root")[0]!, { topK, depth: number(vector, "depth"), nodes: number(vector, "totalTokens") + 1 });
  while (!growth.done) {
    const { tokens } = growth.tree(), candidates: number[] = [], logProbs: number[] = [];
    for (const node of growth.frontier) {
      const row = table.subarray(tokens[node]! * vocabulary, (tokens[node]! + 1) * vocabulary);
      const order = Array.from(row.keys()).sort((a, b) => row[b]! - row[a]! || a - b).slice(0, topK);
      candidates.push(...order);
      logProbs.push(...order.map((id) => row[id]!));
    }
    growth.expand(candidates, logProbs, Math.min(topK, vocabulary));
  }
  const { tree: grown, scores } = growth.finish();
  return { tokens: grown.tokens, parents: grown.parents, scores };
}

const runs: Readonly<Record<string, Run>> = {
  "draft.token-recycling-update": async (vector, threads) => {
    const matrix = intTensor(vector, "matrix");
    await ops.recycleUpdate(matrix, intTensor(vector, "tokens"), floatTensor(vector, "logits"), { threads });
    return { matrix };
  },
  "draft.token-recycling-tree": recyclingTree,
  "draft.tree-mask": treeMask,
  "draft.verify-greedy": async (vector, threads) => verified(await verifyGreedy(tree(vector), floatTensor(vector, "logits"), { threads })),
  "draft.verify-sampling": async (vector, threads) => {
    const mode = vector.params["mode"] as "sampled" | "deterministic";
    const { residual, ...found } = await verifySampled(tree(vector), {
      target: floatTensor(vector, "p"), mode, ...(mode === "sampled" && { draft: floatTensor(vector, "q") }), uniform: floats(vector, "uniform"), uniformFinal: floats(vector, "uniformFinal")[0]!,
    }, { threads });
    return { ...verified(found), residual };
  },
  "draft.prompt-lookup": (vector) => {
    const { draft, start, ngram } = lookupPrompt(ints(vector, "tokens"), vector.params as PromptLookupOptions);
    return { draft: Int32Array.from(draft), start, ngram };
  },
  "draft.suffix-lookup": (vector) => {
    const corpus = vector.tensors.has("in.corpus") ? { corpus: ints(vector, "corpus") } : {};
    const { draft, start, match, fromCorpus } = lookupSuffix(ints(vector, "tokens"), { ...vector.params, ...corpus });
    return { draft: Int32Array.from(draft), start, match, fromCorpus: Number(fromCorpus) };
  },
  "draft.dynamic-tree": dynamicTree,
  "draft.lookahead-pool": (vector) => {
    const pool = new LookaheadPool({
      vocabulary: ints(vector, "poolLength").length, ngram: number(vector, "ngram"), guessSet: number(vector, "guessSet"), entries: ints(vector, "pool"), lengths: ints(vector, "poolLength"),
    });
    pool.update(ints(vector, "window"), ints(vector, "new"));
    const guesses = pool.guesses(ints(vector, "query")[0]!);
    return {
      pool: { shape: [pool.vocabulary, pool.guessSet, pool.ngram - 1], data: pool.entries }, poolLength: pool.lengths,
      guesses: { shape: [guesses.length, pool.ngram - 1], data: Int32Array.from(guesses.flatMap((guess) => [...guess])) },
    };
  },
  "draft.route-small-large": (vector) => {
    const by = vector.params["mode"] === "router" ? { score: floats(vector, "score") } : { logits: floats(vector, "logits") };
    return { ...routeSmallLarge(ints(vector, "small"), ints(vector, "large"), by, number(vector, "threshold")) };
  },
};

function collect(results: Results): Outputs {
  const named = ([name, value]: [string, Result]): [string, NamedTensor] => {
    if (typeof value === "number") return [`out.${name}`, { shape: [1], data: Int32Array.of(value) }];
    if ("shape" in value) return [`out.${name}`, { shape: value.shape, data: value.data as NamedTensor["data"] }];
    return [`out.${name}`, { shape: [value.length], data: value }];
  };
  return new Map(Object.entries(results).map(named));
}

export const draftOperations: Readonly<Record<string, Operation>> = Object.fromEntries(
  Object.entries(runs).map(([name, run]) => [name, { run: async (vector: Vector, { threads }: { readonly threads: number }) => collect(await run(vector, threads)) }]),
);

import { readdirSync } from "node:fs";
import { join } from "node:path";
import { adaKV, expectedAttention, keyDiff, kNorm, KvCache, pyramidKV, snapKV, streamingLlm, tova, type CachePolicy, type KvRows } from "tokenloom";
import t, { type Test } from "tap";
import { readVector } from "#lib/cli/conformance/read.js";
import { tensorOf, type Vector } from "#lib/cli/conformance/vector.js";

/** kvpress' press, and the same here; `first` and `last` are protected, there by scores above all others. */
const presses: Readonly<Record<string, { readonly policy: (ratio: number) => CachePolicy; readonly first?: number; readonly last?: number }>> = {
  StreamingLLM: { policy: (ratio) => streamingLlm({ ratio, rerotate: false }) },
  SnapKV: { policy: (ratio) => snapKV({ ratio, window: 64 }), last: 64 },
  PyramidKV: { policy: (ratio) => pyramidKV({ ratio, window: 64 }), last: 64 },
  AdaKV: { policy: (ratio) => adaKV({ ratio, window: 64 }), last: 64 },
  TOVA: { policy: (ratio) => tova({ ratio }), last: 1 },
  Knorm: { policy: (ratio) => kNorm({ ratio }) },
  KeyDiff: { policy: (ratio) => keyDiff({ ratio }) },
  ExpectedAttention: { policy: (ratio) => expectedAttention({ ratio }), first: 4 },
};

/** Two float32 programs may order scores otherwise that are so near to each other, relative to the largest one of the layer. */
const near = 2e-6;

const folder = process.env["TOKENLOOM_KVPRESS"];
const files = folder === undefined ? [] : readdirSync(folder).filter((name) => name.endsWith(".safetensors")).sort();

t.test("kvpress keeps the same tokens of SmolLM2's own keys and queries", { skip: files.length === 0 && "no choices of kvpress: run tools/kvpress-oracle.py and set TOKENLOOM_KVPRESS" }, async (t) => {
  t.ok(files.length >= 3, "three prompts");
  for (const name of files) await t.test(name, async (t) => comparePrompt(t, (await readVector(join(folder!, name)))!));
});

async function comparePrompt(t: Test, vector: Vector): Promise<void> {
  const { layers, kvHeads, headDim, theta, ratios } = vector.params as { layers: number; kvHeads: number; headDim: number; theta: number; ratios: number[] };
  const rows = Array.from({ length: layers }, (_, layer): KvRows => {
    const of = (what: string): Float32Array => tensorOf(vector, `${what}.${layer}`).data as Float32Array;
    return { key: of("key"), value: of("value"), query: of("query"), queryBeforeRope: of("queryBeforeRope") };
  });
  const tokens = tensorOf(vector, "ids").shape[0]!, rope = { theta, style: "half", dim: headDim } as const;
  for (const [press, { policy: make, first = 0, last = 0 }] of Object.entries(presses)) {
    for (const ratio of ratios) {
      const policy = make(ratio), differing: string[] = [];
      let equal = 0, ties = 0, furthest = 0;
      using cache = new KvCache({ layers, kvHeads, headDim, type: "f32" });
      (await cache.append(rows, { observe: policy })).forEach((out) => out.dispose());
      const scores = policy.score ? await cache.scores(policy, { rope }) : undefined;
      await cache.evict(policy, { rope });
      for (let layer = 0; layer < layers; layer++) {
        const kept = tensorOf(vector, `kept.${press}.${ratio}.${layer}`).data, want = tensorOf(vector, `scores.${press}.${ratio}.${layer}`).data as Float32Array;
        const scored = scores?.[layer]!.data, perHead = scored && scored.length === kvHeads * tokens;
        const ranked = Array.from({ length: kvHeads * tokens }, (_, i) => i % tokens >= first && i % tokens < tokens - last);
        const largest = want.reduce((most, score, i) => (ranked[i] ? Math.max(most, Math.abs(score)) : most), 0);
        if (scored) ranked.forEach((counts, i) => counts && (furthest = Math.max(furthest, Math.abs(scored[perHead ? i : i % tokens]! - want[i]!) / largest)));
        for (let head = 0; head < kvHeads; head++) {
          const ours = new Set(cache.read(layer, head).positions), theirs = new Set(Array.from({ length: tokens }, (_, i) => i).filter((i) => kept[head * tokens + i]));
          const only = [...theirs].filter((i) => !ours.has(i)), instead = [...ours].filter((i) => !theirs.has(i));
          if (only.length === 0 && instead.length === 0) equal++;
          // What they keep and what we keep instead must be as good by their own scores; AdaKV compares across heads, so here each token with the layer's.
          else if (only.length === instead.length && spread([...only, ...instead].map((i) => want[head * tokens + i]!)) <= near * largest) ties++;
          else differing.push(`layer ${layer} head ${head}: they keep ${only.join(" ")}, we ${instead.join(" ")}`);
        }
        scores?.[layer]!.dispose();
      }
      t.same(differing, [], `${press} ${ratio}: ${equal} heads equal, ${ties} up to scores as near as ${near}`);
      t.ok(furthest <= 1e-4, `${press} ${ratio}: scores within ${furthest.toExponential(1)} of the layer's largest`);
    }
  }
}

function spread(values: readonly number[]): number {
  return Math.max(...values) - Math.min(...values);
}

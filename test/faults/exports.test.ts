import t from "tap";
import * as tokenloom from "tokenloom";
import { DraftTree, DynamicTree, loadModel, LookaheadPool, TokenloomError, tensor } from "tokenloom";
import { report } from "./support.js";

const disposed = tensor(new Float32Array(4));
disposed.dispose();
const garbage: readonly (readonly [string, unknown])[] = [
  ["undefined", undefined], ["null", null], ["NaN", NaN], ["-1", -1], ["1.5", 1.5], ["2^53", 2 ** 53], ["Infinity", Infinity], ["a string", "nonsense"], ["''", ""], ["[]", []], ["{}", {}],
  ["[null]", [null]], ["a symbol", Symbol("x")], ["1n", 1n], ["a function", () => undefined], ["a typed array", new Float32Array(3)], ["an Int32Array", new Int32Array([5, -7])],
  ["a tensor", tensor(new Float32Array(6), [2, 3])], ["a disposed tensor", disposed], ["{ budget: -1 }", { budget: -1 }], ["{ signal: 1 }", { signal: 1 }], ["a promise", Promise.resolve(1)],
];
let calls = 0, refused = 0;

/** Calls with each piece of garbage at each place; anything but a result or an error of this package is told. */
async function tryAll(t: Tap, name: string, places: number, call: (args: unknown[]) => unknown): Promise<void> {
  const untyped = new Set<string>();
  for (let place = 0; place < Math.max(1, places); place++) {
    for (const [what, value] of garbage) {
      for (const others of [undefined, value]) {
        calls++;
        try {
          const made = await call(Array.from({ length: Math.max(1, places) }, (_, i) => (i === place ? value : others)));
          if (typeof (made as { dispose?: unknown } | undefined)?.dispose === "function") (made as { dispose(): void }).dispose();
        } catch (error) {
          refused++;
          // What the file system says of a path is told as it is: ENOENT, EACCES.
          if (!(error instanceof TokenloomError) && !/^E[A-Z]+$/.test(String((error as { code?: unknown })?.code))) untyped.add(`argument ${place} is ${what}: ${(error as Error)?.stack?.split("\n").slice(0, 3).join(" ")}`);
        }
      }
    }
  }
  t.same([...untyped].slice(0, 3), [], `${name} (${untyped.size} untyped)`);
}

type Tap = { same(got: unknown, want: unknown, name: string): void };
/** Looked at elsewhere, or they would fetch what a string names. */
const others = new Set(["ops", "loadModel", "locateModel"]);
const isClass = (value: unknown): boolean => typeof value === "function" && /^class\b/.test(Function.prototype.toString.call(value));

t.test("exported functions refuse garbage with a typed error", { timeout: 600_000 }, async (t) => {
  for (const [name, value] of Object.entries(tokenloom).sort(([a], [b]) => (a < b ? -1 : 1))) {
    if (typeof value !== "function" || others.has(name) || isClass(value)) continue;
    await tryAll(t, name, Math.min(4, Math.max(value.length, 1) + 1), (args) => (value as (...given: unknown[]) => unknown)(...args));
  }
});

t.test("so do models, sessions and caches", { timeout: 600_000 }, async (t) => {
  using model = await loadModel("tiny");
  const fresh: Record<string, () => object> = { model: () => model, session: () => model.session() };
  const skipped = new Set(["constructor", "dispose", "fork", "reset", "stats", "eviction", "draftText", "draftCosts", "isDisposed", "fingerprint", "cachedPositions", "pieces", "takePrompt", "takeOver", "checkLength", "write", "endDrafts", "prefill", "step", "keepFirst", "check", "speculate", "learn", "save"]);
  for (const [kind, make] of Object.entries(fresh)) {
    for (const name of Object.getOwnPropertyNames(Object.getPrototypeOf(make()) as object).sort()) {
      if (skipped.has(name) || (kind === "session" && name === "restore")) continue;
      await tryAll(t, `${kind}.${name}`, 2, async (args) => {
        const object = make() as Record<string, (...given: unknown[]) => unknown>, made = object[name]!(...args);
        try {
          if (name === "generate") for await (const piece of made as AsyncIterable<unknown>) { void piece; break; }
          else await made;
        } finally {
          if (kind === "session") (object as unknown as { dispose(): void }).dispose();
        }
      });
    }
  }
  for (const made of [tokenloom.KvCache, DraftTree, DynamicTree, LookaheadPool]) await tryAll(t, `new ${made.name}`, 2, (args) => new (made as unknown as new (...given: unknown[]) => unknown)(...args));
  report("exports", { calls, refused });
});

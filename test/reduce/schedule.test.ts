import t from "tap";
import { eVit, pModRatios, pyramidCounts, toMe, type Schedule } from "tokenloom";

/** Tokens that go in each layer, of many. */
const gone = (perLayer: Schedule, layers: number): number[] => Array.from({ length: layers }, (_, layer) => 1000 - toMe({ perLayer }).keep(1000, { layer, layers }));

t.test("schedules: one number, one a layer, a course", (t) => {
  t.same(gone(13, 3), [13, 13, 13]);
  t.same(gone([5, 0, 9], 3), [5, 0, 9]);
  t.same(gone({ kind: "constant", from: 4 }, 2), [4, 4]);
  t.same(gone({ kind: "linear", from: 26, to: 0 }, 12), Array.from({ length: 12 }, (_, i) => Math.floor(26 * (1 - i / 11) + 1e-9)));
  t.same(gone({ kind: "linear", from: 0, to: 11 }, 12), Array.from({ length: 12 }, (_, i) => i), "whole steps stay whole");
  t.same(gone({ kind: "cosine", from: 20, to: 0 }, 5), [20, 17, 10, 2, 0]);
  t.same(gone({ kind: "cosine", from: 7, to: 3 }, 1), [7]);
  t.end();
});

t.test("toMe stops at half of the tokens that are not special", (t) => {
  t.equal(toMe(100).keep(21, { layer: 0, layers: 1 }), 11);
  t.equal(toMe({ perLayer: 100, distillToken: true }).keep(22, { layer: 0, layers: 1 }), 12);
  t.equal(toMe({ perLayer: 100, classToken: false }).keep(1, { layer: 0, layers: 1 }), 1);
  t.end();
});

t.test("eVit works in its layers only", (t) => {
  const reduction = eVit({ keepRate: 0.7, layers: [3, 6, 9] });
  t.same(Array.from({ length: 12 }, (_, layer) => reduction.keep(197, { layer, layers: 12 })), Array.from({ length: 12 }, (_, layer) => (layer % 3 === 0 && layer > 0 ? 1 + Math.ceil(0.7 * 196) + 1 : 197)));
  t.throws(() => eVit({ keepRate: 0.7, layers: [] }), { name: "ArgumentError", argument: "options.layers" });
  t.throws(() => toMe({ perLayer: { kind: "square" as never, from: 1 } }), { name: "ArgumentError", argument: "options.perLayer.kind" });
  t.throws(() => toMe({ perLayer: { kind: "constant", from: 1, to: 2 } }), { name: "ArgumentError", argument: "options.perLayer.to" }, "an option that has no effect");
  t.end();
});

t.test("courses of papers", (t) => {
  t.same(pyramidCounts(576, [1, 0.5, 0.25, 0.125]), [576, 288, 144, 72]);
  const ratios = pModRatios(32);
  t.equal(ratios[0], 1);
  t.equal(ratios[31], 0.15);
  t.end();
});

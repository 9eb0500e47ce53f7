// Part "types": quantised caches against f16. Whole windows are scored with all tokens kept in the type; a context that is
// converted behind itself, by quantizeBeyond, as in part "perplexity".
import { quantizeBeyond } from "tokenloom";
import { meanAndError, number, table, timed } from "../report.mjs";
import { continued, heldText, windowContext } from "./quality.mjs";
import { computed, cut, options } from "./sequences.mjs";

const decodeBehind = 4000, decoded = 12, rounds = 5, types = ["f16", "int8", "int4"];

const conversions = [undefined, ["int8", 0], ["int4", 0], ["int4", 128]];

/** Perplexity of windows whose context was computed in f16 and then converted, but for the last tokens. */
async function converted(model, folder) {
  const nll = conversions.map(() => []);
  for (const { ids } of heldText(model, folder)) {
    const base = await computed(model, ids.slice(0, windowContext));
    for (const [i, conversion] of conversions.entries()) {
      const sequence = await cut(model, base, conversion && quantizeBeyond(undefined, { type: conversion[0], recent: conversion[1] }));
      const { logProbs } = await continued(sequence, ids.slice(windowContext));
      nll[i].push(-logProbs.reduce((sum, p) => sum + p, 0) / logProbs.length);
      sequence.dispose();
    }
    base.dispose();
  }
  return conversions.slice(1).map(([type, recent], i) => {
    const paired = meanAndError(nll[i + 1].map((value, w) => value - nll[0][w]));
    return { type, recent, change: Math.exp(paired.mean) - 1, changeError: Math.exp(paired.mean) * paired.error };
  });
}

export async function cacheTypes(model, { folder, open, log }) {
  const beyond = await converted(model, folder), models = new Map(), nll = new Map(), sequences = new Map(), best = new Map(types.map((type) => [type, { ms: Infinity, cpuMs: Infinity }]));
  for (const type of types) models.set(type, await open({ cacheType: type }));
  for (const [type, model] of models) {
    const values = [];
    for (const { ids } of heldText(model, folder)) values.push(Math.log((await model.score(ids, { top: 1 })).perplexity));
    nll.set(type, values);
    const ids = heldText(model, folder).flatMap((window) => window.ids).slice(0, decodeBehind);
    sequences.set(type, await computed(model, ids));
    sequences.get(type).tokens.push(ids[0]);
    await sequences.get(type).step(options);
    log(".");
  }
  const bytes = new Map([...sequences].map(([type, sequence]) => [type, sequence.cacheStatistics.bytesHeld]));
  for (let round = 0; round < rounds; round++) {
    for (const [type, sequence] of sequences) {
      const { ms, cpuMs } = await timed(async () => {
        for (let i = 0; i < decoded; i++) await sequence.step(options);
      }), known = best.get(type);
      best.set(type, { ms: Math.min(known.ms, ms / decoded), cpuMs: Math.min(known.cpuMs, cpuMs / decoded) });
    }
  }
  for (const sequence of sequences.values()) sequence.dispose();
  for (const model of models.values()) model.dispose();
  const rows = types.map((type) => {
    const own = meanAndError(nll.get(type)), paired = meanAndError(nll.get(type).map((value, i) => value - nll.get("f16")[i]));
    return {
      type, windows: nll.get(type).length, perplexity: Math.exp(own.mean), perplexityError: Math.exp(own.mean) * own.error, change: Math.exp(paired.mean) - 1, changeError: Math.exp(paired.mean) * paired.error,
      bytes: bytes.get(type), bytesOfF16: bytes.get(type) / bytes.get("f16"), decodeBehind, tokensPerSecond: 1000 / best.get(type).ms, cpuMs: best.get(type).cpuMs,
    };
  });
  return { rows, beyond };
}

export function printTypes({ rows, beyond }) {
  const change = (row) => `${number(100 * row.change, 2)} ± ${number(100 * row.changeError, 2)} %`;
  const kept = table(
    ["cache", "perplexity", "against f16", "bytes", `tokens/s behind ${number(decodeBehind)}`, "processor ms a token"],
    rows.map((row) => [row.type, `${number(row.perplexity, 3)} ± ${number(row.perplexityError, 3)}`, change(row), `${number(100 * row.bytesOfF16, 1)} %`, number(row.tokensPerSecond, 1), number(row.cpuMs, 2)]),
  );
  return `${kept}\n\n${table(["quantizeBeyond, behind a context of 768", "perplexity against f16"], beyond.map((row) => [`${row.type}, recent: ${row.recent}`, change(row)]))}`;
}

// Part "quality": what each policy's cut costs. A context is computed once for each kind of observation and forked for each
// policy; the cut comes behind it, before the question, or the rest of the window, is seen. Prompts are teacher-forced: an
// answer counts as found where greedy decoding would have written all its tokens.
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { gemFilter } from "tokenloom";
import { filterPrompt } from "#lib/generate/filter.js";
import { scoreTokens } from "#lib/generate/score.js";
import { meanAndError, number, table } from "../report.mjs";
import { cuts, shares } from "./policies.mjs";
import { computed, cut as cutBehind, options } from "./sequences.mjs";

export const windowTokens = 1024, windowContext = 768;

/** Log-probability of each of `ids` but the first, behind what the sequence holds, and whether it was the likeliest. */
export async function continued(sequence, ids) {
  const logProbs = [], best = [];
  for (let begin = 0; begin < ids.length; begin += scoreTokens) {
    const some = ids.slice(begin, begin + scoreTokens), targets = Int32Array.from(some, (_, i) => ids[begin + i + 1] ?? 0);
    sequence.tokens.push(...some);
    const rows = await sequence.scoreStep(targets, 1, options);
    for (let i = 0; i < some.length && begin + i + 1 < ids.length; i++) {
      logProbs.push(rows.logProb[i]);
      best.push(rows.indices[i] === targets[i]);
    }
  }
  return { logProbs, best };
}

/** Calls `measure(sequence, cut, bytes before the cut)` for every cut of one context. */
async function forEachCut(model, ids, measure) {
  const bases = new Map(), { threads } = model;
  try {
    for (const cut of cuts()) {
      const kind = JSON.stringify(cut.policy?.observe ?? { kind: "none" });
      if (!bases.has(kind)) bases.set(kind, await computed(model, ids, cut.policy));
      const base = bases.get(kind), before = base.cacheStatistics.bytesHeld;
      const sequence = await cutBehind(model, base, cut.policy);
      await measure(sequence, cut, before);
      sequence.dispose();
    }
  } finally {
    for (const base of bases.values()) base.dispose();
  }
  for (const share of shares) {
    const filter = gemFilter({ layer: Math.floor(model.config.layers.length / 2), ratio: 1 - share });
    const sequence = await computed(model, await filterPrompt(model, filter, ids, threads, options));
    await measure(sequence, { name: "gemFilter", share });
    sequence.dispose();
  }
}

/** The values so far of a cut, the same one in each context. */
function valuesOf(all, { name, share, press }) {
  const key = `${name} ${share}`;
  if (!all.has(key)) all.set(key, { cut: { policy: name, share, press }, values: [] });
  return all.get(key).values;
}

/** kvpress' figures for the same cut, where the oracles have them. */
function kvpressRow({ press, share }) {
  const file = join(process.env.TOKENLOOM_SHARED ?? "", "oracles", "models", "eviction.json");
  return press && existsSync(file) ? JSON.parse(readFileSync(file, "utf8")).rows.find((row) => row.press === press && row.compression === 1 - share) : undefined;
}

/** Windows of a text, evenly spread. */
export function windowsOf(model, folder, file, count) {
  const ids = model.tokenize(readFileSync(join(folder, "prose", file), "utf8")), step = Math.floor((ids.length - windowTokens) / count);
  return Array.from({ length: count }, (_, w) => ({ file, begin: w * step, ids: ids.slice(w * step, w * step + windowTokens) }));
}

/** Sixteen windows, eight of each text. */
export function heldText(model, folder) {
  return ["alice.txt", "opticks-a.txt"].flatMap((file) => windowsOf(model, folder, file, 8));
}

/** The three that kvpress' perplexities rest on begin, to a token, at the first three quarters of alice.txt. */
const isKvpressWindow = ({ file }, index) => file === "alice.txt" && [0, 2, 4].includes(index);

/** Prompts of 1,000 to 6,000 tokens made of the prose and facts: `{ kind, context, asked: [{ question, answer }] }` in ids. */
function builtPrompts(model, folder, facts) {
  const prose = ["alice.txt", "opticks-a.txt"].map((file) => readFileSync(join(folder, "prose", file), "utf8").split("\n").filter((line) => line.trim() !== ""));
  const encode = (text) => model.tokenize(text), prompts = [];
  const build = (tokens, source, chosen, depths) => {
    const lines = prose[source % 2], pieces = [];
    let length = 0;
    for (let i = (source * 37) % lines.length; length < tokens; i = (i + 1) % lines.length) {
      const piece = encode(`${lines[i].trim()}\n`).slice(0, tokens - length);
      pieces.push(piece);
      length += piece.length;
    }
    chosen.map((fact, i) => ({ at: Math.round(depths[i] * pieces.length), ids: encode(` ${fact.sentence}\n`) })).sort((a, b) => b.at - a.at).forEach(({ at, ids }) => pieces.splice(at, 0, ids));
    prompts.push({ kind: chosen.length === 1 ? "single" : "multi", context: pieces.flat(), asked: chosen.map(({ question, answer }) => ({ question: encode(question), answer: encode(answer) })) });
  };
  for (let i = 0; i < 6; i++) build(1000 * (i + 1), i, [facts[i]], [(i * 0.37 + 0.1) % 0.95]);
  for (let i = 0; i < 3; i++) build(1500 * (i + 1) + 250 * i, i + 6, [0, 1, 2].map((k) => facts[(3 * i + k + 8) % facts.length]), [0.15, 0.5, 0.8]);
  return prompts;
}

function storedPrompts(model, needles) {
  return needles.map(({ context, question, answer }) => ({ kind: "stored", context: model.tokenize(context), asked: [{ question: model.tokenize(question), answer: model.tokenize(answer) }] }));
}

export async function perplexity(model, { folder, log }) {
  const all = new Map();
  for (const { file, begin, ids } of heldText(model, folder)) {
    await forEachCut(model, ids.slice(0, windowContext), async (sequence, cut, bytesBefore) => {
      const bytes = sequence.cacheStatistics.bytesHeld, { logProbs } = await continued(sequence, ids.slice(windowContext));
      valuesOf(all, cut).push({ file, begin, nll: -logProbs.reduce((sum, p) => sum + p, 0) / logProbs.length, bytes, bytesBefore });
    });
    log(".");
  }
  const [whole] = all.values();
  return [...all.values()].map(({ cut, values }) => {
    const nll = meanAndError(values.map((window) => window.nll)), paired = meanAndError(values.map((window, i) => window.nll - whole.values[i].nll));
    const mean = (key) => values.reduce((sum, window) => sum + window[key], 0) / values.length, kvpress = values.filter(isKvpressWindow).map((window) => window.nll);
    return {
      ...cut, windows: values.length, perplexity: Math.exp(nll.mean), perplexityError: Math.exp(nll.mean) * nll.error,
      change: Math.exp(paired.mean) - 1, changeError: Math.exp(paired.mean) * paired.error, bytesBefore: mean("bytesBefore"), bytes: mean("bytes"),
      kvpressWindows: Math.exp(meanAndError(kvpress).mean), nll: values.map((window) => window.nll),
    };
  });
}

export async function needles(model, { folder, log }) {
  const all = new Map(), stored = JSON.parse(readFileSync(join(folder, "needle.json"), "utf8"));
  const facts = stored.map(({ question, answer }) => ({ question, answer, sentence: `${question.split("Answer: ")[1]}${answer}.` }));
  for (const { kind, context, asked } of [...storedPrompts(model, stored), ...builtPrompts(model, folder, facts)]) {
    await forEachCut(model, context, async (sequence, cut) => {
      for (const { question, answer } of asked) {
        const fork = sequence.fork(), { logProbs, best } = await continued(fork, [...question, ...answer]);
        const likely = logProbs.slice(-answer.length);
        valuesOf(all, cut).push({ kind, tokens: context.length, found: best.slice(-answer.length).every(Boolean), logLikelihood: likely.reduce((sum, p) => sum + p, 0) / likely.length });
        fork.dispose();
      }
    });
    log(".");
  }
  return [...all.values()].map(({ cut, values }) => {
    const ofKind = (kind) => {
      const some = values.filter((asked) => asked.kind === kind), { mean, error } = meanAndError(some.map((asked) => asked.logLikelihood));
      return { questions: some.length, found: some.filter(({ found }) => found).length / some.length, logLikelihood: mean, logLikelihoodError: error };
    };
    return { ...cut, stored: ofKind("stored"), single: ofKind("single"), multi: ofKind("multi") };
  });
}

const percent = (value, digits = 0) => `${number(100 * value, digits)} %`;

export function printPerplexity(rows) {
  const [whole] = rows;
  return table(
    ["policy", "tokens kept", "perplexity", "against all tokens", "bytes", "kvpress' windows", "kvpress"],
    rows.map((row) => [
      row.policy, percent(row.share), `${number(row.perplexity, 2)} ± ${number(row.perplexityError, 2)}`, row === whole ? "" : `${number(100 * row.change, 1)} ± ${number(100 * row.changeError, 1)} %`,
      percent(row.bytes / whole.bytes), number(row.kvpressWindows, 2), number(kvpressRow(row)?.perplexity, 2),
    ]),
  );
}

export function printNeedles(rows) {
  const cell = ({ found, logLikelihood }) => `${percent(found)}, ${number(logLikelihood, 2)}`;
  return table(
    ["policy: answers found, mean log-likelihood of a token", "tokens kept", "20 stored prompts", "kvpress", "one in 1–6 k tokens", "three in 1.5–5 k"],
    rows.map((row) => {
      const press = kvpressRow(row);
      return [row.policy, percent(row.share), cell(row.stored), press ? `${percent(press.needle_exact)}, ${number(-press.needle_nll, 2)}` : "–", cell(row.single), cell(row.multi)];
    }),
  );
}

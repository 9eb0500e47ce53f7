// Part "sessions": 1,000 sessions of common beginnings, opened, continued, forked and closed in random order. What each writes
// must be what a session alone writes, to the token, and nothing may be left.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { memory } from "tokenloom";
import { randomNumbers } from "../random.mjs";
import { number } from "../report.mjs";

const wanted = 1000, openAtMost = 24, prefixes = 4, tails = 6, written = 6, seed = 1;

/** Texts of which every six begin alike, on and off page boundaries. */
function texts(model, folder) {
  const ids = model.tokenize(readFileSync(join(folder, "prose", "alice.txt"), "utf8"));
  return Array.from({ length: prefixes * tails }, (_, i) => {
    const prefix = i % prefixes, tail = Math.floor(i / prefixes);
    return [...ids.slice(3000 * prefix, 3000 * prefix + 96 + 11 * prefix), ...ids.slice(20000 + 50 * tail, 20000 + 50 * tail + 4 + tail)];
  });
}

async function write(session, prompt, maxTokens) {
  const ids = [];
  for await (const piece of session.generate(prompt, { maxTokens, temperature: 0, ignoreEndOfText: true })) ids.push(...piece.tokens);
  return ids;
}

export async function sessions(model, { folder, open: load, log }) {
  const all = texts(model, folder), random = randomNumbers(seed), below = (count) => Math.floor(random() * count);
  // Each text alone, by a model with no other session.
  const alone = await load(), want = [];
  for (const text of all) {
    const session = alone.session();
    want.push(await write(session, text, written));
    session.dispose();
  }
  alone.dispose();
  await new Promise((resolve) => setImmediate(resolve));
  const begin = memory(), open = [], counts = { opened: 0, forked: 0, closed: 0, continued: 0, wrong: 0, mostShared: 0 };
  const check = (state, ids) => {
    if (ids.some((id, i) => id !== want[state.text][state.at + i])) counts.wrong++;
    state.at += ids.length;
  };
  while (counts.opened + counts.forked < wanted || open.length > 0) {
    const more = counts.opened + counts.forked < wanted && open.length < openAtMost, what = random();
    if (open.length === 0 || (more && what < 0.35)) {
      const state = { session: model.session(), text: below(all.length), at: 0 };
      check(state, await write(state.session, all[state.text], 1 + below(2)));
      open.push(state);
      if (++counts.opened % 50 === 0) log(".");
    } else if (more && what < 0.6) {
      const from = open[below(open.length)];
      open.push({ ...from, session: from.session.fork() });
      counts.forked++;
    } else if (what < 0.8) {
      const state = open[below(open.length)];
      if (state.at < written) {
        check(state, await write(state.session, [], 1));
        counts.continued++;
      }
    } else {
      const [state] = open.splice(below(open.length), 1);
      counts.mostShared = Math.max(counts.mostShared, state.session.stats().sharedBytes);
      checkPositions(state, all[state.text], counts);
      state.session.dispose();
      counts.closed++;
    }
  }
  const end = memory();
  return { ...counts, cacheBytesLeft: end.cache - begin.cache, handlesLeft: end.handles - begin.handles };
}

/** Every head holds each token once, in order. */
function checkPositions({ session }, text, counts) {
  for (const layer of session.cachedPositions()) {
    for (const positions of layer) if (positions.length < text.length || positions.some((position, i) => position !== i)) counts.wrong++;
  }
}

export function printSessions({ opened, forked, closed, continued, wrong, mostShared, cacheBytesLeft, handlesLeft }) {
  return `${number(opened + forked)} sessions: ${number(opened)} opened, ${number(forked)} forked, ${number(continued)} continued, ${number(closed)} closed; up to ${number(mostShared)} bytes shared\n` +
    `${wrong} texts or positions wrong, ${cacheBytesLeft} bytes of cache left, ${handlesLeft} handles left`;
}

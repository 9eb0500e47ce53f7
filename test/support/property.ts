// fast-check, whose failures survive a TAP stream: one error with seed, path and counterexample in ASCII. tap's parser takes no
// test point whose name has U+2028 or U+2029 (its expression's `.` does not match them), and so loses both the test and the plan:
// no random text may be part of an assertion's name. Properties therefore throw (node:assert) instead of asserting through `t`,
// which lets fast-check shrink the case as well. TOKENLOOM_SEED=N repeats a run.
import fc, { type RunDetails } from "fast-check";

/** The text with everything outside of printable ASCII but line feeds as escapes of JavaScript. */
export function ascii(text: string): string {
  return text.replace(/[^\n\x20-\x7e]/gu, (character) => `\\u{${(character.codePointAt(0) as number).toString(16)}}`);
}

function report(details: RunDetails<unknown>): void {
  if (details.failed) throw new Error(ascii(fc.defaultReportMessage(details) ?? `property failed with seed ${details.seed}`), { cause: details.errorInstance });
}

const seed = Number(process.env["TOKENLOOM_SEED"]);
fc.configureGlobal({ reporter: report, ...(Number.isInteger(seed) && process.env["TOKENLOOM_SEED"] ? { seed } : {}) });

export default fc;

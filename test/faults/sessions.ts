import { combine, expectedAttention, h2o, kNorm, promptLookup, pyramidKV, snapKV, streamingLlm, suffixLookup, tokenRecycling, tova, type GenerateOptions, type LanguageModel, type Prompt, type Session, type SessionOptions } from "tokenloom";
import type { Random } from "./support.js";

export interface Text {
  readonly tokens: number[];
  readonly text: string;
  readonly logProb: number;
}

export async function read(session: Session, prompt: Prompt, options: GenerateOptions = {}, each?: (tokens: number) => unknown): Promise<Text> {
  const tokens: number[] = [];
  let text = "", logProb = 0;
  for await (const piece of session.generate(prompt, options)) {
    tokens.push(...piece.tokens);
    text += piece.text;
    logProb += piece.logProb;
    await each?.(tokens.length);
  }
  return { tokens, text, logProb };
}

const words = "the queen looked at garden and said that it was late once upon a time there lived king in small house by sea with her sister who never slept".split(" ");

/** Sentences of a few words, many with the same beginning. */
export function randomPrompt(random: Random, most = 60): string {
  const beginning = random.chance(0.4) ? `${words.slice(0, 20).join(" ")} ${words.slice(5, 25).join(" ")} ` : "";
  return beginning + Array.from({ length: 3 + random.below(most) }, () => random.pick(words)).join(" ");
}

/** A session with a policy, a drafter, both or neither. */
export function randomOptions(random: Random): SessionOptions {
  const budget = 40 + random.below(40);
  const cache = random.pick([undefined, undefined, () => snapKV({ budget, window: 8 }), () => streamingLlm({ budget }), () => h2o({ budget }), () => tova({ budget }), () => kNorm({ budget }), () => pyramidKV({ budget, window: 8 }), () => expectedAttention({ budget })]);
  const draft = random.pick([undefined, undefined, () => tokenRecycling(), () => promptLookup(), () => suffixLookup(), () => combine(promptLookup(), tokenRecycling())]);
  return { ...(cache && { cache: cache() }), ...(draft && { draft: draft(), draftNodes: 2 + random.below(10) }), threads: 1 + random.below(2) };
}

export async function alone(model: LanguageModel, prompt: Prompt, options: GenerateOptions, session: SessionOptions = {}): Promise<Text> {
  using own = model.session({ ...session, tenant: `alone ${Math.random()}` });
  return await read(own, prompt, options);
}

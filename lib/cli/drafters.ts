import type { Drafter } from "../index.js";
import type { Library } from "./library.js";

export const drafterNames = ["recycling", "prompt-lookup", "suffix-lookup", "lookahead", "combine"] as const;
export type DrafterName = (typeof drafterNames)[number];

export function drafterOf(library: Library, name: DrafterName): Drafter {
  const { combine, lookahead, promptLookup, suffixLookup, tokenRecycling } = library;
  switch (name) {
    case "recycling": return tokenRecycling();
    case "prompt-lookup": return promptLookup();
    case "suffix-lookup": return suffixLookup();
    case "lookahead": return lookahead();
    case "combine": return combine(suffixLookup(), tokenRecycling());
  }
}

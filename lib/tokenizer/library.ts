/** The parts of @huggingface/tokenizers that are used here: its own declarations do not resolve under Node's rules. */
export interface TokenizersLibrary {
  readonly SequenceNormalizer: new (config: unknown) => { normalize(text: string): string };
  readonly SplitPreTokenizer: new (config: unknown) => { readonly pattern: RegExp | null };
  readonly WordPiece: new (config: unknown) => { tokens_to_ids: Map<string, number>; encode(words: string[]): string[] };
}

/** Loaded only where a `tokenizer.json` needs it. */
export async function tokenizersLibrary(): Promise<TokenizersLibrary> {
  return (await import("@huggingface/tokenizers")) as unknown as TokenizersLibrary;
}

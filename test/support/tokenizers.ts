import { readFileSync } from "node:fs";
import { join } from "node:path";
import { openGguf } from "#lib/models/gguf.js";
import { createTokenizer, type Tokenizer } from "#lib/tokenizer/tokenizer.js";
import { type MetadataValue, writeGguf } from "./gguf-writer.js";

/** What llama.cpp made of the same texts with the same small vocabularies. */
export interface Golden {
  readonly texts: readonly string[];
  readonly bpe: { readonly tokens: string[]; readonly types: number[]; readonly merges: string[]; readonly results: Readonly<Record<string, GoldenResult>> };
  readonly spm: { readonly tokens: string[]; readonly types: number[]; readonly scores: number[]; readonly plain: GoldenResult; readonly noprefix: GoldenResult };
}

export interface GoldenResult {
  /** One list for each text, special tokens read as text. */
  readonly ids: readonly (readonly number[])[];
  /** The last text but one, special tokens read as tokens. */
  readonly special: readonly number[];
  readonly eog: readonly number[];
  readonly addBos: boolean;
}

export const golden = JSON.parse(readFileSync(join(process.cwd(), "test/fixtures/tokenizer/llama-cpp.json"), "utf8")) as Golden;

type Folder = { write(name: string, bytes: Uint8Array): string };

export async function tokenizerOf(folder: Folder, metadata: Record<string, MetadataValue>): Promise<Tokenizer> {
  return createTokenizer(await openGguf(folder.write("tokenizer.gguf", writeGguf({ metadata }))));
}

export function bytePairMetadata(pre: string): Record<string, MetadataValue> {
  const { tokens, types, merges } = golden.bpe;
  return {
    "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": new Int32Array(types),
    "tokenizer.ggml.merges": merges, "tokenizer.ggml.bos_token_id": tokens.indexOf("<|im_start|>"), "tokenizer.ggml.eos_token_id": tokens.indexOf("<|im_end|>"),
  };
}

export function sentencePieceMetadata(): Record<string, MetadataValue> {
  const { tokens, types, scores } = golden.spm;
  return { "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": new Int32Array(types), "tokenizer.ggml.scores": new Float32Array(scores) };
}

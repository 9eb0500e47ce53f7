import { checkSignal, numberOption as number } from "../check.js";
import { invalidArgument } from "../errors.js";
import type { ChatMessage } from "../tokenizer/template.js";

/** What a generation may be asked for. */
export interface GenerateOptions {
  /** Most tokens to write; by default until the text ends or the context is full. */
  readonly maxTokens?: number;
  /** 0 (the default) always takes the likeliest token; above 0 draws, the flatter the higher. */
  readonly temperature?: number;
  /** Draw among the k likeliest; 0 = all. Default 40, as in llama.cpp. */
  readonly topK?: number;
  /** Draw among the likeliest whose probabilities reach p (arXiv 1904.09751). Default 0.95. */
  readonly topP?: number;
  /** Leave out what is less likely than p times the likeliest (arXiv 2407.01082). Default 0.05. */
  readonly minP?: number;
  /** Divides the logits of recent tokens (arXiv 1909.05858); 1 = off, the default. */
  readonly repeatPenalty?: number;
  /** How many recent tokens the penalty looks at. Default 64. */
  readonly repeatLastTokens?: number;
  /** The same seed gives the same text. Default: a new one each time, told in stats(). */
  readonly seed?: number;
  /** The text ends before any of these. */
  readonly stop?: string | readonly string[];
  /** Goes on after the model's end-of-text token, up to maxTokens: for measurements. */
  readonly ignoreEndOfText?: boolean;
  readonly signal?: AbortSignal | undefined;
  /** Tokens of the prompt computed so far. */
  readonly onProgress?: (progress: { readonly stage: "prompt"; readonly loaded: number; readonly total: number }) => void;
}

/** Plain text, token ids, or a conversation for the model's chat template. */
export type Prompt = string | readonly number[] | readonly ChatMessage[];

export interface CheckedOptions {
  readonly maxTokens: number;
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly repeatPenalty: number;
  readonly repeatLastTokens: number;
  readonly seed: number;
  readonly stop: readonly string[];
  readonly ignoreEndOfText: boolean;
  readonly signal: AbortSignal | undefined;
  readonly onProgress: GenerateOptions["onProgress"];
}

/** The longest history that the repetition penalty can look at. */
export const mostHistory = 4096;

function boolean(name: string, value: unknown): boolean {
  if (value !== undefined && typeof value !== "boolean") throw invalidArgument(name, "a boolean", value);
  return value ?? false;
}

export function checkCallback<T>(name: string, callback: T): T {
  if (callback !== undefined && typeof callback !== "function") throw invalidArgument(name, "a function", callback);
  return callback;
}

export function checkOptions(options: GenerateOptions | undefined): CheckedOptions {
  const o: GenerateOptions = options ?? {};
  if (typeof o !== "object") throw invalidArgument("options", "an object", options);
  const stop = o.stop === undefined ? [] : typeof o.stop === "string" ? [o.stop] : o.stop;
  if (!Array.isArray(stop) || !stop.every((text): text is string => typeof text === "string" && text !== "")) {
    throw invalidArgument("options.stop", "a non-empty string or an array of them", o.stop);
  }
  return {
    maxTokens: number("options.maxTokens", o.maxTokens, Number.MAX_SAFE_INTEGER, 0, Number.MAX_SAFE_INTEGER, true),
    temperature: number("options.temperature", o.temperature, 0, 0, 100),
    topK: number("options.topK", o.topK, 40, 0, Number.MAX_SAFE_INTEGER, true),
    topP: number("options.topP", o.topP, 0.95, 0, 1),
    minP: number("options.minP", o.minP, 0.05, 0, 1),
    repeatPenalty: number("options.repeatPenalty", o.repeatPenalty, 1, 0.01, 100),
    repeatLastTokens: number("options.repeatLastTokens", o.repeatLastTokens, 64, 0, mostHistory, true),
    seed: number("options.seed", o.seed, Math.floor(Math.random() * 2 ** 32), 0, Number.MAX_SAFE_INTEGER, true),
    stop: [...stop],
    ignoreEndOfText: boolean("options.ignoreEndOfText", o.ignoreEndOfText),
    signal: checkSignal("options.signal", o.signal),
    onProgress: checkCallback("options.onProgress", o.onProgress),
  };
}

export function isMessages(prompt: readonly unknown[]): prompt is readonly ChatMessage[] {
  return prompt.length > 0 && typeof prompt[0] === "object";
}

export function checkPrompt(prompt: unknown, vocabulary: number): asserts prompt is Prompt {
  if (typeof prompt === "string") return;
  if (!Array.isArray(prompt)) throw invalidArgument("prompt", "a string, an array of token ids or an array of messages", prompt);
  if (isMessages(prompt)) {
    prompt.forEach((message: unknown, i) => {
      const { role, content } = (message ?? {}) as { role?: unknown; content?: unknown };
      if (typeof role !== "string") throw invalidArgument(`prompt[${i}].role`, "a string", role);
      if (typeof content !== "string") throw invalidArgument(`prompt[${i}].content`, "a string", content);
    });
    return;
  }
  checkIds("prompt", prompt, vocabulary);
}

export function checkIds(name: string, ids: readonly unknown[], vocabulary: number): void {
  ids.forEach((id, i) => {
    if (!Number.isInteger(id) || (id as number) < 0 || (id as number) >= vocabulary) throw invalidArgument(`${name}[${i}]`, `a token id from 0 to ${vocabulary - 1}`, id);
  });
}

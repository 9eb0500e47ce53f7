import { readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import * as jinja from "@huggingface/jinja";
import { ArgumentError, invalidArgument, ModelFormatError, TokenloomError } from "../errors.js";
import type { ModelFile } from "../models/file.js";
import type { JsonValue } from "../models/json.js";
import { exists, readJsonObject } from "../models/safetensors.js";
import { Slicer } from "../slice.js";

/** One turn of a conversation. Templates may know further fields (tool calls, names): they are handed through. */
export interface ChatMessage {
  readonly role: string;
  readonly content: string;
  readonly [field: string]: unknown;
}

export interface RenderOptions {
  /** End with the beginning of the assistant's turn, so that the model goes on with the answer. */
  readonly addGenerationPrompt?: boolean | undefined;
  readonly bosToken?: string | undefined;
  readonly eosToken?: string | undefined;
  /** Descriptions of functions that the model may call, where its template knows them. */
  readonly tools?: readonly unknown[] | undefined;
  /** Further variables for the template, such as `enable_thinking`. */
  readonly variables?: Readonly<Record<string, unknown>> | undefined;
}

/**
 * The library in parts: its Template binds functions of its own to names that cannot be bound again, of which
 * strftime_now follows the user's language and range() has no limit. (Its declarations do not resolve under Node's rules.)
 */
const library = jinja as unknown as {
  tokenize(source: string, options: { lstrip_blocks: boolean; trim_blocks: boolean }): unknown;
  parse(tokens: unknown): unknown;
  readonly Environment: new () => { set(name: string, value: unknown): void };
  readonly Interpreter: new (environment: unknown) => { run(program: unknown): { readonly value: string } };
};

const MAX_TEMPLATE = 1 << 20;
const MAX_RANGE = 100_000;
const MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
const DAYS = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/** What Jinja and transformers define for every template. */
const GLOBALS: Readonly<Record<string, unknown>> = {
  true: true, True: true, false: false, False: false, none: null, None: null,
  raise_exception: (message: unknown) => {
    throw new ArgumentError("messages", `Expected messages that the model's template accepts but it says: ${String(message)}`);
  },
  strftime_now: (format: unknown) => formatTime(new Date(), String(format)),
};

/** range() of one rendering: all its numbers together are limited, or loops within loops would never end. */
function rangeOf(): (first: number, second?: number, step?: number) => number[] {
  let left = MAX_RANGE;
  return (first, second, step = 1) => {
    const [begin, end] = second === undefined ? [0, first] : [first, second];
    const count = Math.ceil((end - begin) / step);
    if (!(count <= left)) throw new RangeError(`range() of at most ${MAX_RANGE} numbers in all`);
    left -= Math.max(0, count);
    return Array.from({ length: Math.max(0, count) }, (_, index) => begin + index * step);
  };
}

/**
 * The source of the model's chat template (Jinja): `tokenizer.chat_template` of a GGUF file; beside safetensors files
 * `chat_template.jinja` or the `chat_template` of `tokenizer_config.json`. Undefined where the model has none: to guess
 * one would be wrong for most models.
 */
export async function chatTemplateOf(file: ModelFile, options: { signal?: AbortSignal | undefined } = {}): Promise<string | undefined> {
  if (file.format === "gguf") return file.metadata.has("tokenizer.chat_template") ? file.metadata.string("tokenizer.chat_template") : undefined;
  const folder = dirname(file.path);
  const source = join(folder, "chat_template.jinja");
  if (await exists(source)) return readFile(source, "utf8");
  const config = join(folder, "tokenizer_config.json");
  if (!(await exists(config))) return undefined;
  const template = (await readJsonObject(config, new Slicer(options.signal))).get("chat_template") ?? undefined;
  return typeof template === "string" ? template : namedTemplate(template, config);
}

/** Some models have several templates, one of them named "default". */
function namedTemplate(list: JsonValue | undefined, path: string): string | undefined {
  if (list === undefined) return undefined;
  const entries = (Array.isArray(list) ? list : []).filter((entry) => entry instanceof Map);
  const chosen = (entries.find((entry) => entry.get("name") === "default") ?? entries[0])?.get("template");
  if (typeof chosen !== "string") throw new ModelFormatError("Expected a string or a list of templates for chat_template", { file: path });
  return chosen;
}

/**
 * The text that a template makes of a conversation, as transformers renders it. Encode it with `special: true`.
 * Throws ArgumentError where the template refuses the messages (a role it does not know, turns in the wrong order),
 * ModelFormatError where the template itself is broken.
 */
export function renderChat(template: string, messages: readonly ChatMessage[], options: RenderOptions = {}): string {
  if (typeof template !== "string") throw invalidArgument("template", "the source of a template", template);
  checkMessages(messages);
  const program = compile(template);
  const variables: Record<string, unknown> = {
    ...options.variables,
    messages,
    tools: options.tools ?? null,
    documents: null,
    add_generation_prompt: options.addGenerationPrompt === true,
    bos_token: options.bosToken ?? "",
    eos_token: options.eosToken ?? "",
    ...GLOBALS,
    range: rangeOf(),
  };
  try {
    const environment = new library.Environment();
    for (const [name, value] of Object.entries(variables)) environment.set(name, value);
    return new library.Interpreter(environment).run(program).value;
  } catch (cause) {
    if (cause instanceof TokenloomError) throw cause;
    throw new ModelFormatError(`Expected a chat template that can be rendered but it fails: ${(cause as Error).message}`);
  }
}

function checkMessages(messages: readonly ChatMessage[]): void {
  if (!Array.isArray(messages)) throw invalidArgument("messages", "an array of { role, content }", messages);
  for (const [index, message] of (messages as readonly (ChatMessage | null | undefined)[]).entries()) {
    if (typeof message?.role !== "string") throw invalidArgument(`messages[${index}].role`, "a string", message?.role);
    if (typeof message.content !== "string") throw invalidArgument(`messages[${index}].content`, "a string", message.content);
  }
}

let last: { readonly source: string; readonly program: unknown } | undefined;

/** Conversations render the same template again and again: the last one is kept. */
function compile(source: string): unknown {
  if (last?.source === source) return last.program;
  if (source.length > MAX_TEMPLATE) throw new ModelFormatError(`Expected a chat template of at most ${MAX_TEMPLATE} characters but received ${source.length}`);
  try {
    last = { source, program: library.parse(library.tokenize(source, { lstrip_blocks: true, trim_blocks: true })) };
  } catch (cause) {
    throw new ModelFormatError(`Expected a chat template in Jinja but it cannot be parsed: ${(cause as Error).message}`);
  }
  return last.program;
}

/** Python's strftime in the C locale, local time: the library's follows the user's language. */
function formatTime(date: Date, format: string): string {
  const two = (value: number): string => String(value).padStart(2, "0");
  const month = MONTHS[date.getMonth()] ?? "", day = DAYS[date.getDay()] ?? "";
  const startOfYear = new Date(date.getFullYear(), 0, 1).getTime();
  const fields = new Map([
    ["Y", String(date.getFullYear())], ["y", two(date.getFullYear() % 100)], ["m", two(date.getMonth() + 1)], ["d", two(date.getDate())],
    ["B", month], ["b", month.slice(0, 3)], ["A", day], ["a", day.slice(0, 3)], ["H", two(date.getHours())], ["I", two(date.getHours() % 12 || 12)],
    ["M", two(date.getMinutes())], ["S", two(date.getSeconds())], ["p", date.getHours() < 12 ? "AM" : "PM"],
    ["j", String(1 + Math.round((new Date(date.getFullYear(), date.getMonth(), date.getDate()).getTime() - startOfYear) / 86_400_000)).padStart(3, "0")], ["%", "%"],
  ]);
  return format.replace(/%([A-Za-z%])/g, (whole, field: string) => fields.get(field) ?? whole);
}

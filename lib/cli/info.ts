import { basename } from "node:path";
import { describeDecoder } from "../models/architectures.js";
import type { DecoderConfig } from "../models/config.js";
import type { ModelFile } from "../models/file.js";
import { openModel as openModelFile } from "../models/open.js";
import { chatTemplateOf } from "../tokenizer/template.js";
import { createTokenizer } from "../tokenizer/tokenizer.js";
import type { SystemInfo } from "../memory.js";
import { openLibrary, type CommonOptions } from "./library.js";
import { formatBytes, interruptSignal, printJson, ProgressBar, table, write } from "./terminal.js";

export interface InfoFlags extends CommonOptions {
  readonly devices?: true;
}

/** `tokenloom info MODEL` and `tokenloom info --devices`: of a model only the header is read. */
export async function info(name: string | undefined, flags: InfoFlags): Promise<void> {
  const library = await openLibrary(flags);
  if (name === undefined || flags.devices) return printDevices(library.systemInfo(), flags);
  const signal = interruptSignal();
  const bar = new ProgressBar();
  const onProgress = (progress: { loaded: number; total: number }): void => bar.update({ ...progress, stage: "fetch" });
  const path = await library.locateModel(name, { offline: flags.offline ?? false, onProgress, signal }).finally(() => bar.stop());
  const file = await openModelFile(path, { signal });
  const described = await describe(file, signal);
  if (flags.json) return printJson(described);
  await write(process.stdout, render(described));
}

async function printDevices({ isa, availableIsas, cores, cuda }: SystemInfo, flags: InfoFlags): Promise<void> {
  if (flags.json) return printJson({ cpu: { isa, availableIsas, cores }, cuda });
  const gpu = cuda.available ? `${cuda.name}, compute capability ${cuda.computeCapability}, ${formatBytes(cuda.memoryBytes)}; ${cuda.ops.length} ops` : `off: ${cuda.reason}`;
  await write(process.stdout, `cpu   ${isa} in use (available: ${availableIsas.join(", ")}), ${cores} cores\ncuda  ${gpu}\n`);
}

interface TensorGroup {
  readonly type: string;
  readonly tensors: number;
  readonly parameters: number;
  readonly bytes: number;
}

interface Description {
  readonly name: string;
  readonly path: string;
  readonly format: string;
  readonly parameters: number;
  readonly config: Omit<DecoderConfig, "layers"> & { readonly layers: number; readonly rope: unknown };
  readonly tensors: readonly TensorGroup[];
  readonly tokenizer: { readonly model: string; readonly vocabulary: number; readonly addsBos: boolean; readonly bos: string | undefined; readonly endTokens: readonly string[] };
  readonly chatTemplate: string | undefined;
  /** Bytes: weights as stored, and the cache of one session that is full, in f16. */
  readonly memory: { readonly weights: number; readonly cachePerToken: number; readonly cacheFull: number };
}

async function describe(file: ModelFile, signal: AbortSignal): Promise<Description> {
  const { config } = describeDecoder(file);
  const tokenizer = await createTokenizer(file, { signal });
  const { layers, ...sizes } = config;
  const groups = groupTensors(file);
  const cachePerToken = layers.length * 2 * config.kvHeads * config.headDim * 2;
  return {
    name: config.name === "" ? basename(file.path) : config.name,
    path: file.path,
    format: file.format,
    parameters: groups.reduce((sum, group) => sum + group.parameters, 0),
    config: { ...sizes, layers: layers.length, rope: layers[0]?.rope },
    tensors: groups,
    tokenizer: {
      model: file.format === "gguf" ? [file.metadata.string("tokenizer.ggml.model"), file.metadata.string("tokenizer.ggml.pre", "")].filter((part) => part !== "").join(", ") : "tokenizer.json",
      vocabulary: config.vocabulary,
      addsBos: tokenizer.addBos,
      bos: tokenizer.bosToken || undefined,
      endTokens: [...tokenizer.eosIds].map((id) => tokenizer.decode([id], { special: true })),
    },
    chatTemplate: await chatTemplateOf(file),
    memory: { weights: groups.reduce((sum, group) => sum + group.bytes, 0), cachePerToken, cacheFull: cachePerToken * config.contextLength },
  };
}

/** Storage types by bytes, the largest first. */
function groupTensors(file: ModelFile): TensorGroup[] {
  const groups = new Map<string, TensorGroup>();
  for (const { type, shape, byteLength } of file.tensors.values()) {
    const { tensors, parameters, bytes } = groups.get(type) ?? { tensors: 0, parameters: 0, bytes: 0 };
    groups.set(type, { type, tensors: tensors + 1, parameters: parameters + shape.reduce((product, size) => product * size, 1), bytes: bytes + byteLength });
  }
  return [...groups.values()].sort((a, b) => b.bytes - a.bytes);
}

function render({ name, path, format, parameters, config, tensors, tokenizer, chatTemplate, memory }: Description): string {
  const rows: [string, string][] = [
    ["model", `${name} (${format}, ${path})`],
    ["architecture", `${config.architecture}, ${(parameters / 1e6).toFixed(1)} million parameters`],
    ["layers", `${config.layers} of width ${config.width}, feed-forward ${config.feedForward} (${config.activation})`],
    ["attention", `${config.heads} query heads, ${config.kvHeads} key/value heads of ${config.headDim}`],
    ["context", `${config.contextLength} tokens`],
    ["vocabulary", `${config.vocabulary} tokens${config.tiedEmbeddings ? ", output tied to the embeddings" : ""}`],
    ["tokenizer", `${tokenizer.model}; begins with ${tokenizer.addsBos ? (tokenizer.bos ?? "a token") : "no extra token"}; ends at ${tokenizer.endTokens.join(" ") || "nothing"}`],
    ["chat template", chatTemplate === undefined ? "none" : `${chatTemplate.length} characters: ${firstWords(chatTemplate)}`],
    ["memory", `${formatBytes(memory.weights)} of weights; cache ${formatBytes(memory.cachePerToken)} a token, ${formatBytes(memory.cacheFull)} for a full context`],
  ];
  const types = table(["type", "tensors", "parameters", "bytes"], tensors.map((group) => [group.type, group.tensors, group.parameters, group.bytes]));
  const width = Math.max(...rows.map(([label]) => label.length));
  return `${rows.map(([label, text]) => `${label.padEnd(width)}  ${text}`).join("\n")}\n\n${types}\n`;
}

function firstWords(template: string): string {
  const line = template.replace(/\s+/g, " ").trim();
  return line.length > 60 ? `${line.slice(0, 60)}…` : line;
}

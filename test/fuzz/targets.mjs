// What each fuzzer does with its bytes. Anything but success or a typed error of this package is a finding. scripts/fuzz.mjs runs them
// guided by coverage; test/faults/corpus.test.ts runs what was found worth keeping through them again.
import { createHash } from "node:crypto";
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { TokenloomError, loadModel } from "../../dist/esm/index.js";
import { describeDecoder } from "../../dist/esm/models/architectures.js";
import { parseJson } from "../../dist/esm/models/json.js";
import { openModel } from "../../dist/esm/models/open.js";
import { Slicer } from "../../dist/esm/slice.js";
import { renderChat } from "../../dist/esm/tokenizer/template.js";
import { createTokenizer } from "../../dist/esm/tokenizer/tokenizer.js";

const fixtures = fileURLToPath(new URL("../fixtures/architectures/llama3", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "tokenloom-fuzz-"));
process.on("exit", () => rmSync(folder, { recursive: true, force: true }));

function write(name, bytes) {
  const path = join(folder, name);
  writeFileSync(path, bytes);
  return path;
}

/** Text from a tokenizer must come back from its ids where nothing was unknown; at least nothing may fail in another way. */
async function tokenize(file) {
  const tokenizer = await createTokenizer(file);
  const ids = tokenizer.encode("Once upon a time, 1984 — naïve 織機\n<s>", { bos: true, eos: true, special: true });
  if (!ids.every((id) => Number.isInteger(id) && id >= 0 && id < tokenizer.vocabulary)) throw new Error(`ids out of range: ${ids}`);
  tokenizer.decode(ids, { special: true });
}

const targets = {
  async gguf(bytes) {
    const file = await openModel(write("model.gguf", bytes));
    for (const { offset, byteLength } of file.tensors.values()) if (offset + byteLength > bytes.length) throw new Error("a tensor beyond the file");
    describeDecoder(file);
  },
  async safetensors(bytes) {
    const file = await openModel(write("model.safetensors", bytes));
    for (const { offset, byteLength } of file.tensors.values()) if (offset + byteLength > bytes.length) throw new Error("a tensor beyond the file");
  },
  /** config.json of a model whose weights are in order. */
  async config(bytes) {
    mkdirSync(join(folder, "config"), { recursive: true });
    writeFileSync(join(folder, "config", "config.json"), bytes);
    copyFileSync(join(fixtures, "model.safetensors"), join(folder, "config", "model.safetensors"));
    describeDecoder(await openModel(join(folder, "config")));
  },
  json: (bytes) => parseJson(Buffer.from(bytes), { file: "made.up", slicer: new Slicer(), safeIntegers: true }),
  /** The tokenizer's keys of a GGUF file. */
  async tokenizer(bytes) {
    await tokenize(await openModel(write("tokenizer.gguf", bytes)));
  },
  async tokenizerJson(bytes) {
    mkdirSync(join(folder, "json"), { recursive: true });
    writeFileSync(join(folder, "json", "tokenizer.json"), bytes);
    writeFileSync(join(folder, "json", "config.json"), "{}");
    copyFileSync(join(fixtures, "model.safetensors"), join(folder, "json", "model.safetensors"));
    await tokenize(await openModel(join(folder, "json")));
  },
  template: (bytes) => renderChat(Buffer.from(bytes).toString("utf8"), [{ role: "user", content: "Hello" }], { addGenerationPrompt: true, bosToken: "<s>", eosToken: "</s>" }),
  /** A saved session whose checksums are right: length of the header (one byte times 8), header, then the parts. */
  async cache(bytes) {
    targets.model ??= loadModel(join(fixtures, "model.gguf"), { cacheType: "int4" });
    const model = await targets.model, at = Math.min(bytes.length, 2 + 8 * (bytes[0] ?? 0) + (bytes[1] ?? 0)), text = Buffer.from(bytes.subarray(2, at)).toString("utf8"), data = Buffer.from(bytes.subarray(at));
    let header = text;
    try {
      const parsed = JSON.parse(text);
      let offset = 0;
      for (const part of parsed.parts) {
        part.sha256 = createHash("sha256").update(data.subarray(offset, offset + part.bytes)).digest("hex");
        offset += part.bytes;
      }
      if (parsed.extra?.model === "?") parsed.extra.model = model.fingerprint;
      header = JSON.stringify(parsed);
    } catch {
      // The text as it is.
    }
    const body = Buffer.from(header), prefix = Buffer.alloc(12);
    prefix.writeUInt32LE(0x564b4c54, 0);
    prefix.writeUInt32LE(1, 4);
    prefix.writeUInt32LE(body.length, 8);
    const session = await model.restore(write("saved.kv", Buffer.concat([prefix, createHash("sha256").update(body).digest(), body, data])));
    try {
      for await (const piece of session.generate([5], { maxTokens: 1 })) void piece;
    } finally {
      session.dispose();
    }
  },
};

export const names = Object.keys(targets).filter((name) => name !== "model");

export async function run(name, bytes) {
  try {
    await targets[name](bytes);
    return "taken";
  } catch (error) {
    if (error instanceof TokenloomError) return "refused";
    throw error;
  }
}

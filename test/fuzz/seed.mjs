// Writes the first inputs of test/fuzz/corpus: the smallest files of each kind that are in order.
//   npm run build && npm run build:test && node test/fuzz/seed.mjs
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../..", import.meta.url));
const { writeGguf } = await import(join(root, "build/test/support/gguf-writer.js"));
const { writeSafetensors } = await import(join(root, "build/test/support/safetensors-writer.js"));
const { loadModel } = await import(join(root, "dist/esm/index.js"));

function seed(target, name, bytes) {
  const folder = join(root, "test/fuzz/corpus", target);
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, name), bytes);
}

const tensor = (name, ...shape) => ({ name, shape, type: "f32", data: new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(0.1) });
const block = [["attn_norm", 4], ["attn_q", 4, 4], ["attn_k", 4, 4], ["attn_v", 4, 4], ["attn_output", 4, 4], ["ffn_norm", 4], ["ffn_gate", 4, 4], ["ffn_up", 4, 4], ["ffn_down", 4, 4]];
const tensors = [tensor("token_embd.weight", 6, 4), tensor("output_norm.weight", 4), ...block.map(([name, ...shape]) => tensor(`blk.0.${name}.weight`, ...shape))];
const sizes = { "llama.block_count": 1, "llama.embedding_length": 4, "llama.attention.head_count": 1, "llama.feed_forward_length": 4, "llama.context_length": 8, "llama.attention.layer_norm_rms_epsilon": 1e-5 };
const pieces = { tokens: ["<unk>", "<s>", "</s>", "a", "b", "ab"], types: new Int32Array([2, 3, 3, 1, 1, 1]) };
const tokenizer = { "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": pieces.tokens, "tokenizer.ggml.token_type": pieces.types, "tokenizer.ggml.scores": new Float32Array([0, 0, 0, -1, -2, -3]) };
const bpe = { "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.tokens": ["a", "b", "ab", "<s>"], "tokenizer.ggml.token_type": new Int32Array([1, 1, 1, 3]), "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.bos_token_id": 3, "tokenizer.ggml.eos_token_id": 3, "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}" };

seed("gguf", "llama", writeGguf({ metadata: { "general.architecture": "llama", "general.alignment": 32, ...sizes, ...tokenizer }, tensors }));
seed("tokenizer", "sentencepiece", writeGguf({ metadata: tokenizer }));
seed("tokenizer", "bytepair", writeGguf({ metadata: bpe }));
seed("safetensors", "two", writeSafetensors([{ name: "a.weight", dtype: "F32", shape: [2, 2], data: new Float32Array(4) }, { name: "b", dtype: "BF16", shape: [3], data: new Float32Array(3) }], { format: "pt" }));
seed("config", "llama", readFileSync(join(root, "test/fixtures/architectures/llama3/config.json")));
const json = JSON.parse(readFileSync(join(root, "test/fixtures/architectures/llama3/tokenizer.json"), "utf8"));
json.model.vocab = Object.fromEntries(Object.entries(json.model.vocab).slice(0, 12));
json.model.merges = [];
seed("tokenizerJson", "bytes", JSON.stringify(json));
seed("json", "all", '{"a":[1,-2.5e3,true,false,null,"\\u00e9\\n",{}],"__proto__":{"b":[[]]}}');
seed("template", "chat", "{% for m in messages %}<|{{ m['role'] }}|>{{ m.content | trim }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}");

const folder = mkdtempSync(join(tmpdir(), "tokenloom-seed-")), model = await loadModel(join(root, "test/fixtures/architectures/llama3/model.gguf"), { cacheType: "int4" }), session = model.session();
for await (const piece of session.generate([1, 2], { maxTokens: 1 })) void piece;
await session.save(join(folder, "saved"));
const saved = readFileSync(join(folder, "saved")), length = saved.readUInt32LE(8), header = JSON.parse(saved.toString("utf8", 44, 44 + length));
header.extra.model = "?";
const text = Buffer.from(JSON.stringify(header));
seed("cache", "session", Buffer.concat([Buffer.from([text.length >> 3, text.length & 7]), text, saved.subarray(44 + length)]));
rmSync(folder, { recursive: true });

import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { ModelFormatError } from "#lib/errors.js";
import { architectures, describeDecoder } from "#lib/models/architectures.js";
import type { DecoderDescription } from "#lib/models/config.js";
import type { ModelFile, StorageType, TensorEntry } from "#lib/models/file.js";
import { openGguf } from "#lib/models/gguf.js";
import { JsonMetadata, MapMetadata } from "#lib/models/metadata.js";
import { storedFactorTensors, withStoredFactors } from "#lib/models/rope.js";
import { referenceLogits } from "../support/reference-decoder.js";

const FIXTURES = "test/fixtures/architectures";

type Shapes = Record<string, readonly number[] | undefined>;

function modelFile(format: ModelFile["format"], metadata: Record<string, unknown>, shapes: Shapes, types: Record<string, StorageType> = {}): ModelFile {
  const tensors = new Map<string, TensorEntry>();
  for (const [name, shape] of Object.entries(shapes)) {
    if (shape === undefined) continue;
    const byteLength = 4 * shape.reduce((product, size) => product * size, 1);
    tensors.set(name, { name, type: types[name] ?? "f32", shape, file: "made.up", offset: 0, byteLength });
  }
  const values = format === "gguf" ? new MapMetadata(new Map(Object.entries(metadata)), "made.up") : new JsonMetadata(metadata, "made.up");
  return { format, path: "made.up", tensors, metadata: values };
}

// Sizes of every hand-made model: 2 layers (Gemma 3: 6), width 48, 4 heads on 2, headDim 16 (so 64 wide), feed-forward 96.
const [WIDTH, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD, VOCABULARY] = [48, 4, 2, 16, 96, 100];

function ggufMetadata(architecture: string, more: Record<string, unknown> = {}, layers = 2): Record<string, unknown> {
  const own = {
    block_count: layers, embedding_length: WIDTH, "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "attention.key_length": HEAD_DIM,
    feed_forward_length: FEED_FORWARD, context_length: 128, "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 5000, ...more,
  };
  return { "general.architecture": architecture, "general.name": "made up", ...Object.fromEntries(Object.entries(own).map(([key, value]) => [`${architecture}.${key}`, value])) };
}

function ggufShapes(layers: number, block: Shapes, without: readonly string[] = []): Shapes {
  const every: Shapes = {
    "attn_norm.weight": [WIDTH], "attn_q.weight": [HEADS * HEAD_DIM, WIDTH], "attn_k.weight": [KV_HEADS * HEAD_DIM, WIDTH], "attn_v.weight": [KV_HEADS * HEAD_DIM, WIDTH],
    "attn_output.weight": [WIDTH, HEADS * HEAD_DIM], "ffn_norm.weight": [WIDTH], "ffn_gate.weight": [FEED_FORWARD, WIDTH], "ffn_up.weight": [FEED_FORWARD, WIDTH],
    "ffn_down.weight": [WIDTH, FEED_FORWARD], ...block,
  };
  const shapes: Shapes = { "token_embd.weight": [VOCABULARY, WIDTH], "output_norm.weight": [WIDTH] };
  for (let layer = 0; layer < layers; layer++) {
    for (const [name, shape] of Object.entries(every)) if (!without.includes(name)) shapes[`blk.${layer}.${name}`] = shape;
  }
  return shapes;
}

const JSON_SIZES = {
  num_hidden_layers: 2, hidden_size: WIDTH, num_attention_heads: HEADS, num_key_value_heads: KV_HEADS, head_dim: HEAD_DIM, intermediate_size: FEED_FORWARD,
  max_position_embeddings: 128, rms_norm_eps: 1e-5, vocab_size: VOCABULARY,
};

function jsonShapes(layers: number, block: Shapes = {}): Shapes {
  const every: Shapes = {
    "input_layernorm.weight": [WIDTH], "self_attn.q_proj.weight": [HEADS * HEAD_DIM, WIDTH], "self_attn.k_proj.weight": [KV_HEADS * HEAD_DIM, WIDTH],
    "self_attn.v_proj.weight": [KV_HEADS * HEAD_DIM, WIDTH], "self_attn.o_proj.weight": [WIDTH, HEADS * HEAD_DIM], "post_attention_layernorm.weight": [WIDTH],
    "mlp.gate_proj.weight": [FEED_FORWARD, WIDTH], "mlp.up_proj.weight": [FEED_FORWARD, WIDTH], "mlp.down_proj.weight": [WIDTH, FEED_FORWARD], ...block,
  };
  const shapes: Shapes = { "model.embed_tokens.weight": [VOCABULARY, WIDTH], "model.norm.weight": [WIDTH], "lm_head.weight": [VOCABULARY, WIDTH] };
  for (let layer = 0; layer < layers; layer++) for (const [name, shape] of Object.entries(every)) shapes[`model.layers.${layer}.${name}`] = shape;
  return shapes;
}

const GEMMA_GGUF: Shapes = { "post_attention_norm.weight": [WIDTH], "post_ffw_norm.weight": [WIDTH] };
const GEMMA_JSON: Shapes = { "pre_feedforward_layernorm.weight": [WIDTH], "post_feedforward_layernorm.weight": [WIDTH] };
const QUERY_KEY_NORM_GGUF: Shapes = { "attn_q_norm.weight": [HEAD_DIM], "attn_k_norm.weight": [HEAD_DIM] };
const QUERY_KEY_NORM_JSON: Shapes = { "self_attn.q_norm.weight": [HEAD_DIM], "self_attn.k_norm.weight": [HEAD_DIM] };

const llama = (more: Record<string, unknown> = {}, shapes: Shapes = {}, types: Record<string, StorageType> = {}): ModelFile =>
  modelFile("gguf", ggufMetadata("llama", more), { ...ggufShapes(2, {}), ...shapes }, types);
const llamaJson = (more: Record<string, unknown> = {}, shapes: Shapes = {}): ModelFile =>
  modelFile("safetensors", { model_type: "llama", ...JSON_SIZES, ...more }, { ...jsonShapes(2), ...shapes });

/** The error of a model that must be refused. */
function refusal(file: ModelFile): ModelFormatError {
  try {
    describeDecoder(file);
  } catch (error) {
    if (error instanceof ModelFormatError) return error;
    throw error;
  }
  throw new Error("expected a ModelFormatError but the model was described");
}

t.test("llama from GGUF: every field, every tensor", async (t) => {
  const { config, weights } = describeDecoder(llama({ "rope.dimension_count": 16 }));
  t.match(config, {
    architecture: "llama", name: "made up", width: WIDTH, heads: HEADS, kvHeads: KV_HEADS, headDim: HEAD_DIM, feedForward: FEED_FORWARD, vocabulary: VOCABULARY,
    contextLength: 128, normEpsilon: 1e-5, normOffset: 0, activation: "silu", attentionScale: 0.25, embeddingScale: 1, tiedEmbeddings: true, queryKeyNorm: false, postNorms: false,
  });
  t.same(config.layers, Array(2).fill({ rope: { style: "interleaved", theta: 5000, dim: 16 } }));
  t.equal(weights.embedding, "token_embd.weight");
  t.equal(weights.outputNorm, "output_norm.weight");
  t.equal(weights.output, undefined);
  t.same(weights.layers[1], {
    attentionNorm: "blk.1.attn_norm.weight",
    query: { tensor: "blk.1.attn_q.weight", rowBegin: 0, rowEnd: 64 },
    key: { tensor: "blk.1.attn_k.weight", rowBegin: 0, rowEnd: 32 },
    value: { tensor: "blk.1.attn_v.weight", rowBegin: 0, rowEnd: 32 },
    attentionOutput: { tensor: "blk.1.attn_output.weight", rowBegin: 0, rowEnd: 48 },
    feedForwardNorm: "blk.1.ffn_norm.weight",
    gate: { tensor: "blk.1.ffn_gate.weight", rowBegin: 0, rowEnd: 96 },
    up: { tensor: "blk.1.ffn_up.weight", rowBegin: 0, rowEnd: 96 },
    down: { tensor: "blk.1.ffn_down.weight", rowBegin: 0, rowEnd: 48 },
  });
});

t.test("llama from GGUF: output head, biases, key/value heads and head size left out", async (t) => {
  const biases = { "attn_q.bias": [64], "attn_k.bias": [32], "attn_v.bias": [32] };
  const untied = describeDecoder(modelFile("gguf", ggufMetadata("llama"), { ...ggufShapes(2, biases), "output.weight": [VOCABULARY, WIDTH] }));
  t.same(untied.weights.output, { tensor: "output.weight", rowBegin: 0, rowEnd: VOCABULARY });
  t.equal(untied.config.tiedEmbeddings, false);
  t.match(untied.weights.layers[0], { queryBias: "blk.0.attn_q.bias", keyBias: "blk.0.attn_k.bias", valueBias: "blk.0.attn_v.bias" });
  const plain = ggufShapes(2, { "attn_q.weight": [48, 48], "attn_k.weight": [48, 48], "attn_v.weight": [48, 48], "attn_output.weight": [48, 48] });
  const { config } = describeDecoder(modelFile("gguf", ggufMetadata("llama", { "attention.head_count_kv": undefined, "attention.key_length": undefined }), plain));
  t.match(config, { heads: 4, kvHeads: 4, headDim: 12 });
});

t.test("llama and mistral from config.json: defaults of transformers, windows, old and new RoPE", async (t) => {
  const { config, weights } = describeDecoder(llamaJson());
  t.match(config, { architecture: "llama", tiedEmbeddings: false, normOffset: 0 });
  t.same(config.layers[0], { rope: { style: "half", theta: 10000, dim: 16 } });
  t.match(weights, { embedding: "model.embed_tokens.weight", outputNorm: "model.norm.weight", output: { tensor: "lm_head.weight" } });
  t.match(weights.layers[0], { attentionNorm: "model.layers.0.input_layernorm.weight", feedForwardNorm: "model.layers.0.post_attention_layernorm.weight" });
  t.equal(describeDecoder(llamaJson({ rope_theta: 7 })).config.layers[0]?.rope.theta, 7);
  t.equal(describeDecoder(llamaJson({ rope_parameters: { rope_theta: 8, rope_type: "default" } })).config.layers[0]?.rope.theta, 8);
  t.equal(describeDecoder(llamaJson({ tie_word_embeddings: true })).weights.output, undefined);
  for (const [window, expected] of [[undefined, 4096], [null, undefined], [64, 64]] as const) {
    const { layers } = describeDecoder(llamaJson({ model_type: "mistral", ...(window !== undefined && { sliding_window: window }) })).config;
    t.same(layers.map((layer) => layer.window), [expected, expected]);
  }
  const bare = Object.fromEntries(Object.entries(jsonShapes(2)).map(([name, shape]) => [name.replace(/^model\./, ""), shape]));
  t.equal(describeDecoder(modelFile("safetensors", { model_type: "llama", ...JSON_SIZES }, bare)).weights.embedding, "embed_tokens.weight");
});

t.test("RoPE scaling from config.json", async (t) => {
  const scalingOf = (scaling: Record<string, unknown>): unknown => describeDecoder(llamaJson({ rope_scaling: scaling })).config.layers[0]?.rope.scaling;
  t.same(scalingOf({ type: "linear", factor: 4 }), { type: "linear", factor: 4 });
  t.equal(scalingOf({ rope_type: "dynamic", factor: 4 }), undefined);
  t.same(scalingOf({ rope_type: "llama3", factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 64 }),
    { type: "llama3", factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalMaxPosition: 64 });
  t.match(scalingOf({ rope_type: "yarn", factor: 4, original_max_position_embeddings: 32 }),
    { type: "yarn", factor: 4, originalMaxPosition: 32, betaFast: 32, betaSlow: 1, attentionFactor: 0.1 * Math.log(4) + 1 });
  t.match(scalingOf({ rope_type: "yarn", factor: 4, beta_fast: 16, beta_slow: 2, attention_factor: 1.5 }), { betaFast: 16, betaSlow: 2, attentionFactor: 1.5, originalMaxPosition: 128 });
  const inside = { rope_theta: 9, rope_type: "linear", factor: 2 };
  t.same(describeDecoder(llamaJson({ rope_parameters: inside })).config.layers[0]?.rope, { style: "half", theta: 9, dim: 16, scaling: { type: "linear", factor: 2 } });
  for (const bad of [
    { rope_type: "linear" }, { rope_type: "linear", factor: 0 }, { rope_type: "linear", factor: "4" }, { rope_type: "yarn", factor: 0.5 }, { rope_type: "yarn", factor: 2, original_max_position_embeddings: 1 },
    { rope_type: "llama3", factor: 8, low_freq_factor: 4, high_freq_factor: 4, original_max_position_embeddings: 64 }, { rope_type: "warp", factor: 2 }, { rope_type: 3 },
    { rope_type: "longrope", short_factor: [1, 1], long_factor: [1, 1] },
  ]) {
    t.match(refusal(llamaJson({ rope_scaling: bad })).message, /rope_scaling/, JSON.stringify(bad));
  }
});

t.test("RoPE scaling from GGUF, numbers and tensors", async (t) => {
  const scalingOf = (more: Record<string, unknown>, shapes: Shapes = {}): unknown => describeDecoder(llama(more, shapes)).config.layers[0]?.rope.scaling;
  t.equal(scalingOf({}), undefined);
  t.equal(scalingOf({ "rope.scaling.type": "none", "rope.scaling.factor": 4 }), undefined);
  t.same(scalingOf({ "rope.scaling.type": "linear", "rope.scaling.factor": 4 }), { type: "linear", factor: 4 });
  t.same(scalingOf({ "rope.scale_linear": 2 }), { type: "linear", factor: 2 });
  t.match(scalingOf({ "rope.scaling.type": "yarn", "rope.scaling.factor": 4, "rope.scaling.original_context_length": 32 }),
    { type: "yarn", factor: 4, originalMaxPosition: 32, attentionFactor: 0.1 * Math.log(4) + 1 });
  const file = llama({}, { "rope_freqs.weight": [8] });
  const description = describeDecoder(file);
  t.same(storedFactorTensors(description), ["rope_freqs.weight"]);
  const divisors = Float32Array.from({ length: 8 }, (_, i) => 1 + i);
  const resolved = withStoredFactors(description, new Map([["rope_freqs.weight", divisors]]), "made.up");
  t.same(resolved.config.layers[1]?.rope.scaling, { type: "factors", short: [...divisors], long: [...divisors], originalMaxPosition: 128, attentionFactor: 1 });
  t.equal(resolved.config.layers[0]?.rope, resolved.config.layers[1]?.rope, "one RoPE stays one object");
  t.same(storedFactorTensors(resolved), []);
  for (const values of [new Float32Array(8), new Float32Array(7).fill(1), Float32Array.from([1, 1, 1, NaN, 1, 1, 1, 1])]) {
    t.throws(() => withStoredFactors(description, new Map([["rope_freqs.weight", values]]), "made.up"), { code: "TL_MODEL_FORMAT", tensor: "rope_freqs.weight" });
  }
  t.equal(refusal(llama({}, { "rope_freqs.weight": [16] })).tensor, "rope_freqs.weight");
  t.equal(refusal(llama({}, { "rope_freqs.weight": [8] }, { "rope_freqs.weight": "f16" })).tensor, "rope_freqs.weight");
  t.equal(refusal(llama({}, { "rope_factors_long.weight": [8] })).tensor, "rope_factors_short.weight");
  t.equal(refusal(llama({ "rope.scaling.type": "longrope" })).tensor, "rope_factors_short.weight");
  t.match(refusal(llama({ "rope.scaling.type": "twist", "rope.scaling.factor": 2 })).message, /twist/);
});

t.test("qwen2 needs its biases; qwen3 has query and key norms", async (t) => {
  const biases: Shapes = { "attn_q.bias": [64], "attn_k.bias": [32], "attn_v.bias": [32] };
  const qwen2 = describeDecoder(modelFile("gguf", ggufMetadata("qwen2"), ggufShapes(2, biases)));
  t.equal(qwen2.config.layers[0]?.rope.style, "half");
  t.equal(qwen2.weights.layers[1]?.keyBias, "blk.1.attn_k.bias");
  t.match(refusal(modelFile("gguf", ggufMetadata("qwen2"), ggufShapes(2, { ...biases, "attn_v.bias": undefined }))), { tensor: "blk.0.attn_v.bias" });
  const jsonBiases: Shapes = { "self_attn.q_proj.bias": [64], "self_attn.k_proj.bias": [32], "self_attn.v_proj.bias": [32] };
  const sliding = { model_type: "qwen2", ...JSON_SIZES, use_sliding_window: true, sliding_window: 32, max_window_layers: 1 };
  t.same(describeDecoder(modelFile("safetensors", sliding, jsonShapes(2, jsonBiases))).config.layers.map((layer) => layer.window), [undefined, 32]);
  t.same(describeDecoder(modelFile("safetensors", { ...sliding, use_sliding_window: false }, jsonShapes(2, jsonBiases))).config.layers.map((layer) => layer.window), [undefined, undefined]);
  const types = { layer_types: ["sliding_attention", "full_attention"] };
  t.same(describeDecoder(modelFile("safetensors", { ...sliding, ...types }, jsonShapes(2, jsonBiases))).config.layers.map((layer) => layer.window), [32, undefined]);
  t.match(refusal(modelFile("safetensors", { ...sliding, layer_types: ["full_attention"] }, jsonShapes(2, jsonBiases))).message, /layer_types/);

  const qwen3 = describeDecoder(modelFile("gguf", ggufMetadata("qwen3"), ggufShapes(2, QUERY_KEY_NORM_GGUF)));
  t.match(qwen3, { config: { queryKeyNorm: true, normOffset: 0 }, weights: { layers: [{ queryNorm: "blk.0.attn_q_norm.weight", keyNorm: "blk.0.attn_k_norm.weight" }] } });
  t.equal(refusal(modelFile("gguf", ggufMetadata("qwen3"), ggufShapes(2, {}))).tensor, "blk.0.attn_q_norm.weight");
  const json = describeDecoder(modelFile("safetensors", { model_type: "qwen3", ...JSON_SIZES }, jsonShapes(2, QUERY_KEY_NORM_JSON)));
  t.equal(json.weights.layers[1]?.queryNorm, "model.layers.1.self_attn.q_norm.weight");
});

t.test("gemma2: soft caps, alternating window, scales, norm offset", async (t) => {
  const gguf = describeDecoder(modelFile("gguf", ggufMetadata("gemma2", { "attention.sliding_window": 8 }), ggufShapes(2, GEMMA_GGUF))).config;
  t.match(gguf, { activation: "gelu-tanh", attentionSoftcap: 50, logitSoftcap: 30, postNorms: true, normOffset: 0, attentionScale: 0.25, embeddingScale: Math.sqrt(WIDTH), tiedEmbeddings: true });
  t.same(gguf.layers.map((layer) => layer.window), [8, undefined]);
  const deep = modelFile("gguf", ggufMetadata("gemma2", {}, 46), ggufShapes(46, GEMMA_GGUF));
  t.equal(describeDecoder(deep).config.attentionScale, 1 / Math.sqrt(WIDTH / HEADS), "27B scales by width / heads");
  const base = { model_type: "gemma2", ...JSON_SIZES };
  const json = describeDecoder(modelFile("safetensors", { ...base, query_pre_attn_scalar: 144, attn_logit_softcapping: null }, { ...jsonShapes(2, GEMMA_JSON), "lm_head.weight": undefined }));
  t.match(json.config, { normOffset: 1, logitSoftcap: 30, attentionScale: 1 / 12, tiedEmbeddings: true });
  t.equal(json.config.attentionSoftcap, undefined, "null switches the soft cap off");
  t.same(json.config.layers.map((layer) => layer.window), [4096, undefined]);
  t.match(json.weights.layers[0], {
    attentionPostNorm: "model.layers.0.post_attention_layernorm.weight", feedForwardNorm: "model.layers.0.pre_feedforward_layernorm.weight",
    feedForwardPostNorm: "model.layers.0.post_feedforward_layernorm.weight",
  });
  t.match(refusal(modelFile("safetensors", { ...base, query_pre_attn_scalar: 0 }, jsonShapes(2, GEMMA_JSON))).message, /query_pre_attn_scalar/);
  t.match(refusal(modelFile("safetensors", { ...base, use_bidirectional_attention: true }, jsonShapes(2, GEMMA_JSON))).message, /bidirectional/);
  t.match(refusal(modelFile("gguf", ggufMetadata("gemma2", { final_logit_softcapping: -1 }), ggufShapes(2, GEMMA_GGUF))).message, /final_logit_softcapping/);
});

t.test("gemma3: five local layers to one global, a RoPE of each kind", async (t) => {
  const block = { ...GEMMA_GGUF, ...QUERY_KEY_NORM_GGUF };
  const more = { "attention.sliding_window": 8, "rope.scaling.type": "linear", "rope.scaling.factor": 8, "rope.freq_base": undefined };
  const { config } = describeDecoder(modelFile("gguf", ggufMetadata("gemma3", more, 7), ggufShapes(7, block)));
  t.same(config.layers.map((layer) => layer.window), [8, 8, 8, 8, 8, undefined, 8]);
  t.same(config.layers[0]?.rope, { style: "half", theta: 10000, dim: 16 });
  t.same(config.layers[5]?.rope, { style: "half", theta: 1e6, dim: 16, scaling: { type: "linear", factor: 8 } });
  t.match(config, { queryKeyNorm: true, postNorms: true, activation: "gelu-tanh", attentionScale: 0.25 });
  t.equal(config.attentionSoftcap, undefined);
  const flags = describeDecoder(modelFile("gguf", ggufMetadata("gemma3", { ...more, "attention.sliding_window_pattern": [false, true] }), ggufShapes(2, block))).config;
  t.same(flags.layers.map((layer) => layer.window), [undefined, 8]);
  const old = { model_type: "gemma3_text", ...JSON_SIZES, num_hidden_layers: 6, sliding_window: 16, rope_scaling: { rope_type: "linear", factor: 8 }, rope_local_base_freq: 20000 };
  const shapes = { ...jsonShapes(6, { ...GEMMA_JSON, ...QUERY_KEY_NORM_JSON }), "lm_head.weight": undefined };
  const fromOld = describeDecoder(modelFile("safetensors", old, shapes)).config;
  t.same(fromOld.layers[4], { window: 16, rope: { style: "half", theta: 20000, dim: 16 } });
  t.same(fromOld.layers[5], { rope: { style: "half", theta: 1e6, dim: 16, scaling: { type: "linear", factor: 8 } } });
  const parameters = { sliding_attention: { rope_type: "default", rope_theta: 30000 }, full_attention: { rope_type: "linear", factor: 4, rope_theta: 2e6 } };
  const fromNew = describeDecoder(modelFile("safetensors", { ...old, rope_scaling: undefined, rope_local_base_freq: undefined, rope_parameters: parameters }, shapes)).config;
  t.same(fromNew.layers[0]?.rope, { style: "half", theta: 30000, dim: 16 });
  t.same(fromNew.layers[5]?.rope, { style: "half", theta: 2e6, dim: 16, scaling: { type: "linear", factor: 4 } });
});

t.test("phi3: fused tensors as row ranges, LongRoPE, partial rotation", async (t) => {
  const block: Shapes = { "attn_qkv.weight": [128, WIDTH], "ffn_up.weight": [2 * FEED_FORWARD, WIDTH] };
  const unfused = ["attn_q.weight", "attn_k.weight", "attn_v.weight", "ffn_gate.weight"];
  const factors = { "rope_factors_long.weight": [6], "rope_factors_short.weight": [6] };
  const metadata = ggufMetadata("phi3", { "rope.dimension_count": 12, "rope.scaling.original_context_length": 32, "rope.scaling.attn_factor": 1.25, "attention.sliding_window": 24 });
  const gguf = describeDecoder(modelFile("gguf", metadata, { ...ggufShapes(2, block, unfused), ...factors }));
  t.same(gguf.config.layers[0], {
    window: 24,
    rope: { style: "half", theta: 5000, dim: 12, scaling: { type: "stored-factors", short: "rope_factors_short.weight", long: "rope_factors_long.weight", originalMaxPosition: 32, attentionFactor: 1.25 } },
  });
  t.match(gguf.weights.layers[1], {
    query: { tensor: "blk.1.attn_qkv.weight", rowBegin: 0, rowEnd: 64 }, key: { tensor: "blk.1.attn_qkv.weight", rowBegin: 64, rowEnd: 96 },
    value: { tensor: "blk.1.attn_qkv.weight", rowBegin: 96, rowEnd: 128 }, gate: { tensor: "blk.1.ffn_up.weight", rowBegin: 0, rowEnd: 96 }, up: { tensor: "blk.1.ffn_up.weight", rowBegin: 96, rowEnd: 192 },
  });
  const six = [1, 2, 3, 4, 5, 6];
  const json: Record<string, unknown> = {
    model_type: "phi3", ...JSON_SIZES, partial_rotary_factor: 0.75, original_max_position_embeddings: 32,
    rope_scaling: { type: "su", short_factor: [1, 1, 1, 1, 1, 1], long_factor: six },
  };
  const jsonBlock: Shapes = { "self_attn.qkv_proj.weight": [128, WIDTH], "mlp.gate_up_proj.weight": [2 * FEED_FORWARD, WIDTH] };
  for (const name of ["q_proj", "k_proj", "v_proj"]) jsonBlock[`self_attn.${name}.weight`] = undefined;
  for (const name of ["gate_proj", "up_proj"]) jsonBlock[`mlp.${name}.weight`] = undefined;
  const { config, weights } = describeDecoder(modelFile("safetensors", json, jsonShapes(2, jsonBlock)));
  const attentionFactor = Math.sqrt(1 + Math.log(128 / 32) / Math.log(32));
  t.same(config.layers[0], { rope: { style: "half", theta: 10000, dim: 12, scaling: { type: "factors", short: [1, 1, 1, 1, 1, 1], long: six, originalMaxPosition: 32, attentionFactor } } });
  t.match(weights.layers[0], { key: { tensor: "model.layers.0.self_attn.qkv_proj.weight", rowBegin: 64, rowEnd: 96 }, up: { tensor: "model.layers.0.mlp.gate_up_proj.weight", rowBegin: 96, rowEnd: 192 } });
  for (const share of [1.5, 0.7, 0]) t.match(refusal(modelFile("safetensors", { ...json, partial_rotary_factor: share }, jsonShapes(2, jsonBlock))).code, "TL_MODEL_FORMAT");
  t.equal(refusal(modelFile("gguf", metadata, { ...ggufShapes(2, { ...block, "attn_qkv.weight": [127, WIDTH] }, unfused), ...factors })).tensor, "blk.0.attn_qkv.weight");
});

t.test("unknown architectures are told which are known", async (t) => {
  t.match(refusal(modelFile("gguf", { "general.architecture": "mamba" }, {})).message, /Expected one of llama, qwen2, qwen3, gemma2, gemma3, phi3 for general\.architecture but found 'mamba'/);
  t.match(refusal(modelFile("safetensors", { model_type: "bert" }, {})).message, /mistral.*gemma3_text.*model_type.*'bert'/);
  t.match(refusal(modelFile("gguf", {}, {})).message, /general\.architecture/);
  t.equal(new Set(architectures.flatMap((architecture) => architecture.gguf)).size, architectures.flatMap((architecture) => architecture.gguf).length, "no name twice");
});

t.test("missing, misshapen, mistyped and surplus tensors are named with what was expected", async (t) => {
  for (const name of Object.keys(ggufShapes(2, {}))) {
    const missing = refusal(llama({}, { [name]: undefined }));
    t.equal(missing.tensor, name);
    t.match(missing.message, /Expected a tensor of shape \[.*none of this name/);
    const shape = ggufShapes(2, {})[name]!;
    const wrong = refusal(llama({}, { [name]: [...shape.slice(0, -1), shape.at(-1)! + 1] }));
    t.equal(wrong.tensor, name);
    t.match(wrong.message, name === "token_embd.weight" ? /shape \[100, 48\] but found \[100, 49\]/ : /Expected shape \[.*\] but found \[.*\]/);
    t.equal(refusal(llama({}, { [name]: [...shape, 1] })).tensor, name, "another rank");
    t.equal(refusal(llama({}, {}, { [name]: "i32" })).tensor, name, "integers");
  }
  t.equal(refusal(llama({}, {}, { "blk.0.attn_norm.weight": "q8_0" })).tensor, "blk.0.attn_norm.weight", "a quantised norm");
  t.equal(describeDecoder(llama({}, {}, { "blk.0.attn_q.weight": "q4_1", "token_embd.weight": "q8_0", "output_norm.weight": "bf16" })).config.layers.length, 2);
  for (const name of ["blk.0.attn_output.bias", "blk.0.attn_q_norm.weight", "blk.2.attn_norm.weight", "blk.0.ffn_gate_exps.weight", "output.bias"]) {
    t.equal(refusal(llama({}, { [name]: [48] })).tensor, name, "left out of the arithmetic otherwise");
  }
  t.equal(describeDecoder(llamaJson({}, { "model.layers.0.self_attn.rotary_emb.inv_freq": [8], "model.rotary_emb.inv_freq": [8] })).config.layers.length, 2);
  t.equal(refusal(llamaJson({ attention_bias: true })).tensor, "model.layers.0.self_attn.q_proj.bias");
  t.equal(refusal(llamaJson({}, { "lm_head.weight": undefined })).tensor, "lm_head.weight");
  t.equal(refusal(llamaJson({ vocab_size: 101 })).tensor, "model.embed_tokens.weight");
});

t.test("hostile hyperparameters are refused by name", async (t) => {
  const hostile: [string, readonly unknown[]][] = [
    ["block_count", [0, 3, 10001, 2 ** 31 - 1, -1, 1.5, NaN, "2", [2], undefined]],
    ["embedding_length", [0, 47, 49, 2 ** 31 - 1, -48, undefined]],
    ["attention.head_count", [0, 3, 5, 2 ** 31 - 1, -4, [4, 4], undefined]],
    ["attention.head_count_kv", [0, 1, 3, 4, 8, 2 ** 31 - 1, -2]],
    ["attention.key_length", [0, 1, 15, 17, 2 ** 31 - 1, -16]],
    ["attention.value_length", [8, 0, 32]],
    ["feed_forward_length", [0, 95, 2 ** 31 - 1, undefined]],
    ["context_length", [0, -1, NaN, "128", undefined]],
    ["attention.layer_norm_rms_epsilon", [0, -1e-5, NaN, Infinity, "1e-5", undefined]],
    ["rope.freq_base", [0, -1, NaN, Infinity]],
    ["rope.dimension_count", [0, 1, 15, 18, 2 ** 31 - 1]],
    ["rope.scaling.factor", [-1, NaN, Infinity]],
    ["rope.scaling.original_context_length", [0, 1, -5]],
    ["rope.scaling.attn_factor", [0, -1, NaN]],
    ["attention.scale", [0, -1, Infinity]],
    ["attention.sliding_window", [-1, 0.5, NaN, "8"]],
    ["vocab_size", [0, 99, 101, -1]],
    ["expert_count", [8, -1]],
  ];
  for (const [key, values] of hostile) {
    for (const value of values) {
      const error = refusal(llama({ [key]: value }));
      t.ok(error.tensor !== undefined || error.message.includes(key.split(".").at(-1)!) || error.message.includes("embedding_length"), `${key} = ${String(value)}: ${error.message}`);
    }
  }
  t.equal(refusal(llama({ block_count: 3 })).tensor, "blk.2.attn_q.weight");
  t.equal(refusal(llama({ block_count: 1 })).tensor, "blk.1.attn_norm.weight");
  t.match(refusal(llamaJson({ hidden_act: "relu" })).message, /hidden_act/);
  t.match(refusal(llamaJson({ partial_rotary_factor: 0.5 })).message, /partial_rotary_factor/);
});

/** A safetensors fixture, read without the package's reader. */
function readFixture(folder: string): ModelFile {
  const path = join(folder, "model.safetensors");
  const bytes = readFileSync(path);
  const start = 8 + Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString("utf8", 8, start)) as Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>;
  delete header.__metadata__;
  const tensors = new Map<string, TensorEntry>();
  for (const [name, { dtype, shape, data_offsets: [begin, end] }] of Object.entries(header)) {
    tensors.set(name, { name, type: dtype.toLowerCase() as StorageType, shape, file: path, offset: start + begin, byteLength: end - begin });
  }
  return { format: "safetensors", path, tensors, metadata: new JsonMetadata(JSON.parse(readFileSync(join(folder, "config.json"), "utf8")) as Record<string, unknown>, path) };
}

/** What must be the same whether a model came as GGUF or as safetensors. */
function comparable({ config }: DecoderDescription): unknown {
  const { architecture, name, normOffset, layers, ...rest } = config;
  return { ...rest, normEpsilon: Math.fround(config.normEpsilon), windows: layers.map((layer) => layer.window), ropes: layers.map(({ rope }) => [Math.fround(rope.theta), rope.dim]) };
}

t.test("the fixtures say the same in both formats", async (t) => {
  for (const name of readdirSync(FIXTURES).sort()) {
    const json = describeDecoder(readFixture(join(FIXTURES, name)));
    const gguf = describeDecoder(await openGguf(join(FIXTURES, name, "model.gguf")));
    t.same(comparable(gguf), comparable(json), name);
    t.equal(gguf.weights.layers.length, json.config.layers.length, name);
  }
});

t.test("a plain decoder that follows the descriptions gives the reference logits", async (t) => {
  for (const name of readdirSync(FIXTURES).sort()) {
    const expected = JSON.parse(readFileSync(join(FIXTURES, name, "expected.json"), "utf8")) as { ids: number[]; logits: number[][] };
    for (const file of [readFixture(join(FIXTURES, name)), await openGguf(join(FIXTURES, name, "model.gguf"))]) {
      const described = describeDecoder(file);
      const factors = new Map(storedFactorTensors(described).map((tensor) => {
        const { offset, byteLength } = file.tensors.get(tensor)!;
        return [tensor, new Float32Array(new Uint8Array(readFileSync(file.path).subarray(offset, offset + byteLength)).buffer)];
      }));
      const logits = referenceLogits(file, withStoredFactors(described, factors, file.path), expected.ids);
      const worst = Math.max(...logits.map((row, i) => Math.max(...row.map((logit, j) => Math.abs(logit - expected.logits[i]![j]!)))));
      // Six digits are stored, and transformers' own float32 rounding is below 1e-5.
      t.ok(worst < 1e-4, `${name} from ${file.format}: ${worst}`);
    }
  }
});

t.test("the tiny model is described", async (t) => {
  const { config } = describeDecoder(await openGguf("models/tiny.gguf"));
  t.match(config, { architecture: "llama", headDim: 32, heads: 4, kvHeads: 2, tiedEmbeddings: true, contextLength: 512, vocabulary: 512 });
});

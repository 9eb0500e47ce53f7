#!/usr/bin/env python3
"""Makes the small random models and reference logits of test/fixtures/architectures, one folder an architecture.

    pip install torch==2.15.0 transformers==5.23.0 safetensors tokenizers==0.23.3 gguf==0.19.0 numpy
    python tools/architecture-oracles.py [--out test/fixtures/architectures]

A folder holds `model.safetensors` + `config.json` as transformers writes them, `tokenizer.json`, `model.gguf` with the same weights under
llama.cpp's conventions (tensor names, adjacent RoPE pairs in Llama's q and k, Gemma's norm weights plus 1), and
`expected.json`: the token ids, the logits of each position from transformers in float32 on the stored weights, and
`features`: by how much the logits would move were a feature left out; `roundoff`: how far float64 is. The script fails where such a move is too small
to be noticed by a test.
"""
import argparse
import copy
import json
import pathlib

import gguf
import numpy
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY, TOKENS = 128, 24
COMMON = dict(vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0)
SMALL = dict(hidden_size=32, intermediate_size=64)
LONG = [1.0 + 0.75 * i for i in range(6)]
SHORT = [1.0 + 0.05 * i for i in range(6)]
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
LONGROPE = dict(rope_type="longrope", short_factor=SHORT, long_factor=LONG)

# name: (model_type, storage of safetensors, storage of GGUF, configuration, {feature: configuration without it})
MODELS = {
    "llama3": ("llama", "bfloat16", "f16", dict(rope_theta=500.0, rope_scaling=LLAMA3, tie_word_embeddings=True),
        {"rope scaling": dict(rope_scaling=None), "rope base": dict(rope_theta=10000.0)}),
    "mistral": ("mistral", "float32", "f16", dict(SMALL, sliding_window=8, rope_theta=10000.0, head_dim=16, tie_word_embeddings=False),
        {"window": dict(sliding_window=None), "window one narrower": dict(sliding_window=7), "window one wider": dict(sliding_window=9)}),
    "qwen2": ("qwen2", "float16", "f16", dict(rope_theta=10000.0, rope_scaling=YARN, tie_word_embeddings=True),
        {"rope scaling": dict(rope_scaling=None), "rope attention factor": dict(rope_scaling=dict(YARN, attention_factor=1.0))}),
    "qwen3": ("qwen3", "bfloat16", "f32", dict(SMALL, rope_theta=10000.0, head_dim=32, tie_word_embeddings=False), {"rope base": dict(rope_theta=500.0)}),
    "gemma2": ("gemma2", "bfloat16", "f16", dict(
        num_attention_heads=2, num_key_value_heads=1, head_dim=24, sliding_window=8, query_pre_attn_scalar=24, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
        {"window": dict(sliding_window=64), "attention soft cap": dict(attn_logit_softcapping=None), "logit soft cap": dict(final_logit_softcapping=None),
         "query_pre_attn_scalar": dict(query_pre_attn_scalar=32), "layer order": dict(layer_types=["full_attention", "sliding_attention"])}),
    "gemma3": ("gemma3_text", "bfloat16", "f16", dict(
        SMALL, head_dim=16, sliding_window=6, query_pre_attn_scalar=16, num_hidden_layers=6, num_key_value_heads=1,
        rope_theta=1000000.0, rope_local_base_freq=10000.0, rope_scaling=dict(rope_type="linear", factor=8.0)),
        {"window": dict(sliding_window=64), "global rope scaling": dict(rope_scaling=None), "local rope base": dict(rope_local_base_freq=1000000.0),
         "global layer": dict(layer_types=["sliding_attention"] * 6)}),
    "phi3": ("phi3", "float16", "f32", dict(
        SMALL, num_attention_heads=2, num_key_value_heads=1, rope_theta=10000.0, partial_rotary_factor=0.75, original_max_position_embeddings=16,
        sliding_window=12, rope_scaling=LONGROPE, tie_word_embeddings=False),
        {"window": dict(sliding_window=None), "long factors": dict(rope_scaling=dict(LONGROPE, long_factor=SHORT)),
         "rope attention factor": dict(rope_scaling=dict(LONGROPE, attention_factor=1.0))}),
}
# These config.json are written as before transformers 5, with rope_theta and rope_scaling side by side: most files are.
OLD_STYLE = {"llama3", "gemma3", "phi3"}


def configuration(kind, settings):
    values = {**COMMON, **copy.deepcopy(settings)}
    return CONFIG_MAPPING[kind](**{key: value for key, value in values.items() if value is not None or key != "rope_scaling"})


def build(config, generator):
    """A model with weights so large that attention is far from uniform, and norms and biases that are not neutral."""
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in name:
                weight.copy_(noise * 0.3 if config.model_type.startswith("gemma") else 1 + noise * 0.3)
            elif name.endswith("bias"):
                weight.copy_(noise * 0.5)
            elif "embed_tokens" in name:
                weight.copy_(noise * (0.25 if config.tie_word_embeddings else 1.0))
            elif "q_proj" in name or "k_proj" in name or "qkv_proj" in name:
                weight.copy_(noise * 1.3 * weight.shape[1] ** -0.5)
            else:
                weight.copy_(noise * weight.shape[1] ** -0.5)
    return model


@torch.no_grad()
def logits(config, weights, ids, dtype=torch.float32):
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype).eval()
    missing, unexpected = model.load_state_dict({name: value.to(dtype) for name, value in weights.items()}, strict=False)
    assert not unexpected and all("lm_head" in name for name in missing), (missing, unexpected)
    model.tie_weights()
    return model(torch.tensor([ids]), use_cache=False).logits[0].double().numpy()


def old_style(config, settings):
    """config.json without what transformers 5 added."""
    stored = {key: value for key, value in config.items() if key not in ("rope_parameters", "layer_types", "dtype", "_sliding_window_pattern")}
    return stored | {key: settings[key] for key in ("rope_theta", "rope_local_base_freq", "partial_rotary_factor", "rope_scaling") if key in settings}


def permuted(weight, heads):
    """Rows of each head from (i, i + half) pairs to adjacent ones, as llama.cpp stores q and k of the llama architecture."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
}


def gguf_name(name, gemma):
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    if name == "lm_head.weight":
        return "output.weight"
    _, _, layer, rest = name.split(".", 3)
    stem, what = rest.rsplit(".", 1)
    known = NAMES | {"post_attention_layernorm": "post_attention_norm" if gemma else "ffn_norm"}
    return f"blk.{layer}.{known[stem]}.{what}"


def write_gguf(path, kind, config, weights, storage):
    """The same model as llama.cpp's converter lays it out; the vocabulary is a byte-level BPE that reads ASCII."""
    architecture = {"mistral": "llama", "gemma3_text": "gemma3"}.get(kind, kind)
    gemma = architecture.startswith("gemma")
    writer = gguf.GGUFWriter(path, architecture)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name("random weights")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if storage == "f32" else gguf.LlamaFileType.MOSTLY_F16)
    rope = config.rope_parameters
    rope_global = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope_global["rope_theta"])
    dim = int(head_dim * rope_global.get("partial_rotary_factor", 1.0))
    writer.add_rope_dimension_count(dim)
    if rope_global["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope_global["factor"])
    if rope_global["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope_global["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope_global["original_max_position_embeddings"])
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    add_vocabulary(writer)
    if rope_global["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(rope_global, dim))
    if rope_global["rope_type"] == "longrope":
        original, longest = config.original_max_position_embeddings, config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(float(numpy.sqrt(1 + numpy.log(longest / original) / numpy.log(original))))
        writer.add_tensor("rope_factors_long.weight", numpy.array(rope["long_factor"], numpy.float32))
        writer.add_tensor("rope_factors_short.weight", numpy.array(rope["short_factor"], numpy.float32))
    for name, weight in weights.items():
        value = weight.float().numpy()
        if gemma and name.endswith("norm.weight"):
            value = value + 1
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            value = permuted(value, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        half = storage == "f16" and value.ndim == 2
        writer.add_tensor(gguf_name(name, gemma), numpy.ascontiguousarray(value.astype(numpy.float16 if half else numpy.float32)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def vocabulary():
    """A valid vocabulary of the size wanted: three special tokens, the printable ASCII bytes, 29 merges."""
    merges = [f"Ġ {chr(97 + i)}" for i in range(26)] + ["t h", "h e", "i n"]
    tokens = ["<unk>", "<s>", "</s>", "Ċ", "Ġ"] + [chr(33 + i) for i in range(94)] + [pair.replace(" ", "") for pair in merges]
    assert len(tokens) == VOCABULARY
    return tokens, merges


def write_tokenizer(path):
    tokens, merges = vocabulary()
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, [tuple(pair.split(" ")) for pair in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens[:3]])
    tokenizer.save(str(path))


def add_vocabulary(writer):
    tokens, merges = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (VOCABULARY - 3))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)


def llama3_divisors(rope, dim):
    """By how much llama3 scaling divides each frequency (transformers' formula, turned into llama.cpp's tensor)."""
    wavelengths = 2 * numpy.pi * rope["rope_theta"] ** (numpy.arange(0, dim, 2) / dim)
    context, low, high, factor = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    smooth = (context / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    return numpy.where(wavelengths < context / high, 1, numpy.where(wavelengths > context / low, factor, between)).astype(numpy.float32)


def make(name, folder, seed):
    kind, storage, gguf_storage, settings, ablations = MODELS[name]
    generator = torch.Generator().manual_seed(seed)
    config = configuration(kind, settings)
    model = build(config, generator)
    weights = {key: value.detach().clone().to(getattr(torch, storage)) for key, value in model.state_dict().items() if key != "lm_head.weight" or not config.tie_word_embeddings}
    if gguf_storage == "f16":
        # Both files must hold the same numbers: matrices that f16 and the safetensors' type can both hold.
        weights = {key: value.half().to(value.dtype).half().to(value.dtype) if value.dim() == 2 else value for key, value in weights.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    stored = json.loads(config.to_json_string())
    stored = old_style(stored, settings) if name in OLD_STYLE else stored
    stored |= {"architectures": [type(model).__name__], "torch_dtype" if name in OLD_STYLE else "dtype": storage}
    (folder / "config.json").write_text(json.dumps(stored, indent=1) + "\n")
    write_tokenizer(folder / "tokenizer.json")
    weights = load_file(folder / "model.safetensors")
    ids = torch.randint(3, VOCABULARY, (TOKENS,), generator=generator).tolist()
    read = AutoConfig.from_pretrained(folder)
    expected = logits(read, weights, ids)
    assert numpy.array_equal(expected, logits(config, weights, ids)), f"{name}: config.json does not say what the configuration says"
    distance = lambda other: float(numpy.abs(other - expected).max())
    roundoff = distance(logits(read, weights, ids, torch.float64))
    features = {feature: round(distance(logits(configuration(kind, {**settings, **change}), weights, ids)), 4) for feature, change in ablations.items()}
    assert min(features.values()) > 0.05 and roundoff < 1e-4, (name, features, roundoff)
    write_gguf(folder / "model.gguf", kind, config, weights, gguf_storage)
    rows = [[float(f"{value:.6g}") for value in row] for row in expected]
    text = json.dumps({"model_type": kind, "ids": ids, "features": features, "roundoff": float(f"{roundoff:.2g}"), "logits": "ROWS"})
    text = text.replace('"ROWS"', "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]")
    (folder / "expected.json").write_text(text + "\n")
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{name}: {size // 1024} KiB, logits {expected.min():.2f} … {expected.max():.2f}, roundoff {roundoff:.1e}, without {features}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="test/fixtures/architectures")
    parser.add_argument("--only", nargs="*", default=list(MODELS), choices=list(MODELS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.only:
        make(name, pathlib.Path(options.out) / name, 1 + list(MODELS).index(name))


if __name__ == "__main__":
    main()

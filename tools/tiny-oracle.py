#!/usr/bin/env python3
"""Reference outputs of models/tiny.gguf: test/fixtures/tiny.json.

    pip install torch==2.15.0 transformers==5.23.0 tokenizers==0.23.3 gguf==0.19.0 numpy
    python tools/tiny-oracle.py [--model models/tiny.gguf] [--out test/fixtures/tiny.json]

The weights are dequantised with the `gguf` package, q and k brought back from llama.cpp's row order, and transformers'
Llama computes in float32. The tokenizer is built with `tokenizers` from the file's vocabulary and merges, the chat
template is rendered by jinja2. In the output, row i of `top_ids` and `top_logits` is what the model predicts after token
i; `margin` is the distance between the two best logits of a step; perplexity is over all tokens but the first.
"""
import argparse
import json

import gguf
import jinja2
import numpy
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

GREEDY = ["Once upon a time", "The king said to", "Dorothy looked at the", "There was a little garden where", "Alice"]
CHAT = [
    [{"role": "user", "content": "Tell me a story about a fox."}],
    [{"role": "user", "content": "Who are you?"}],
    [{"role": "system", "content": "You tell stories."}, {"role": "user", "content": "Tell me about looms."}],
]
SCORE = [
    "Once upon a time there lived a poor miller who had a beautiful daughter, and one day he had to go and speak to the king.",
    "The Scarecrow and the Tin Woodman went down the road of yellow brick, and the Lion walked beside them without a word. It was 12 o'clock.",
    "def weave(warp, weft):\n    return [warp[i] + weft[i] for i in range(64)]  # ünïcödé ✓ 日本\n",
]
TOKENS = ["Hello, world!", " leading", "trailing ", "a  b\t\tc\n\n\nd", "don't we'll they'RE I'm", "1234567890 3.14 ½ ² Ⅷ", "naïve café — “quoted”…",
          "日本語のテキスト", "emoji 👩‍👩‍👧 🏳️‍🌈", "<|im_start|>user\nhi<|im_end|>", "ZWJ\u200d NBSP\u00a0 BOM\ufeff", "\r\n\x00\x7f", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", ""]


def read(path):
    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}, {tensor.name: (tensor.data, tensor.tensor_type) for tensor in reader.tensors}


def build_tokenizer(values):
    assert values["tokenizer.ggml.model"] == "gpt2" and values["tokenizer.ggml.pre"] == "smollm"
    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    merges = [tuple(pair.split(" ")) for pair in values["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token, kind in zip(tokens, types) if kind == gguf.TokenType.CONTROL])
    return tokenizer


def build_model(values, tensors):
    get = lambda key: values[f"llama.{key}"]
    heads, kv_heads, layers = get("attention.head_count"), get("attention.head_count_kv"), get("block_count")
    config = LlamaConfig(
        vocab_size=get("vocab_size"), hidden_size=get("embedding_length"), intermediate_size=get("feed_forward_length"), num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=get("context_length"), rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
        rope_theta=get("rope.freq_base"), tie_word_embeddings=True, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )
    weight = lambda name: torch.from_numpy(numpy.array(gguf.quants.dequantize(*tensors[name]), numpy.float32))

    def half_order(value, count):
        rows, columns = value.shape
        return value.reshape(count, rows // count // 2, 2, columns).transpose(1, 2).reshape(rows, columns)

    state = {"model.embed_tokens.weight": weight("token_embd.weight"), "lm_head.weight": weight("token_embd.weight"), "model.norm.weight": weight("output_norm.weight")}
    for layer in range(layers):
        for ours, theirs in {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
                             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}.items():
            value = weight(f"blk.{layer}.{theirs}.weight")
            if theirs in ("attn_q", "attn_k"):
                value = half_order(value, heads if theirs == "attn_q" else kv_heads)
            state[f"model.layers.{layer}.{ours}.weight"] = value
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    model.load_state_dict(state)
    return model


@torch.no_grad()
def logits(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0]


def continuation(model, tokenizer, ids, count, stop):
    out, margins, ids = [], [], list(ids)
    while len(out) < count and (not out or out[-1] != stop):
        best = logits(model, ids)[-1].topk(2)
        out.append(int(best.indices[0]))
        margins.append(round(float(best.values[0] - best.values[1]), 4))
        ids.append(out[-1])
    return {"out": out, "margin": margins, "text": tokenizer.decode(out, skip_special_tokens=False)}


def score(model, tokenizer, text):
    ids = tokenizer.encode(text).ids
    values = logits(model, ids)
    loss = torch.nn.functional.cross_entropy(values[:-1].double(), torch.tensor(ids[1:]))
    top = values.topk(20)
    return {"text": text, "ids": ids, "perplexity": round(float(loss.exp()), 5), "top_ids": top.indices.tolist(), "top_logits": [[round(value, 4) for value in row] for row in top.values.tolist()]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/tiny.gguf")
    parser.add_argument("--out", default="test/fixtures/tiny.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    values, tensors = read(options.model)
    tokenizer, model = build_tokenizer(values), build_model(values, tensors)
    stop = values["tokenizer.ggml.eos_token_id"]
    template = jinja2.Environment().from_string(values["tokenizer.chat_template"])
    result = {"greedy": [], "chat": [], "score": [score(model, tokenizer, text) for text in SCORE], "tokens": []}
    for prompt in GREEDY:
        ids = tokenizer.encode(prompt).ids
        result["greedy"].append({"prompt": prompt, "ids": ids, **continuation(model, tokenizer, ids, 40, stop)})
    for messages in CHAT:
        rendered = template.render(messages=messages, add_generation_prompt=True)
        ids = tokenizer.encode(rendered).ids
        result["chat"].append({"messages": messages, "rendered": rendered, "ids": ids, **continuation(model, tokenizer, ids, 48, stop)})
    for text in TOKENS:
        ids = tokenizer.encode(text).ids
        result["tokens"].append({"text": text, "ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=False)})
    with open(options.out, "w", encoding="utf-8") as file:
        json.dump(result, file, ensure_ascii=False, separators=(",", ":"))
        file.write("\n")
    for entry in result["greedy"] + result["chat"]:
        print(repr(entry["text"]))
    print([entry["perplexity"] for entry in result["score"]])


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""What NVIDIA's kvpress keeps of SmolLM2's own keys and queries, for test/cache/kvpress.test.ts.

    pip install torch kvpress==0.5.5 "transformers<5.3" gguf safetensors numpy
    python tools/kvpress-oracle.py MODEL.gguf FOLDER --text FILE --text FILE --text FILE [--tokens 400]
    TOKENLOOM_KVPRESS=FOLDER npx tap build/test/cache/kvpress.test.js

The weights are dequantised to float32, the model is transformers', scores and choices are kvpress' own: each press is called by
kvpress' hook within the forward pass. FOLDER gets a safetensors file a text: `ids`, `tokens`; of each layer L `key.L`, `value.L`
`[tokens, kvHeads, headDim]`, `query.L`, `queryBeforeRope.L` `[tokens, heads, headDim]` (keys and `query` after RoPE) and of each press
and compression ratio `scores.PRESS.RATIO.L` `[kvHeads, tokens]`, `kept.PRESS.RATIO.L` u8 `[kvHeads, tokens]`.
"""
import argparse
import json
import pathlib

import torch
from kvpress import AdaKVPress, ExpectedAttentionPress, KeyDiffPress, KnormPress, PyramidKVPress, SnapKVPress, StreamingLLMPress, TOVAPress
from kvpress.presses.base_press import BasePress
from kvpress.utils import get_prerope_query_states
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.models.llama.modeling_llama import rotate_half

RATIOS = (0.5, 0.75)
PRESSES = {
    "StreamingLLM": StreamingLLMPress, "SnapKV": SnapKVPress, "PyramidKV": PyramidKVPress, "TOVA": TOVAPress, "Knorm": KnormPress, "KeyDiff": KeyDiffPress,
    "ExpectedAttention": ExpectedAttentionPress, "AdaKV": lambda compression_ratio: AdaKVPress(SnapKVPress(compression_ratio)),
}


def kept_rows(module, press, hidden_states, keys, values, attentions, kwargs):
    """Which tokens of each head press.compress leaves, found by their keys and values: u8 [kvHeads, tokens]."""
    before = torch.cat([keys, values], -1)[0].contiguous()
    after = torch.cat(press.compress(module, hidden_states, keys, values, attentions, kwargs), -1)[0].contiguous()
    kept = torch.zeros(before.shape[:2], dtype=torch.uint8)
    for head in range(before.shape[0]):
        rows = {row.numpy().tobytes(): i for i, row in enumerate(before[head])}
        assert len(rows) == before.shape[1], "two tokens with the same key and value"
        for row in after[head]:
            kept[head, rows[row.numpy().tobytes()]] = 1
    if isinstance(press, AdaKVPress):  # masks instead of cutting
        _, heads, tokens = module.masked_key_indices
        kept[heads, tokens] = 0
        module.masked_key_indices = None
    return kept


class Recorder(BasePress):
    """Lets every press look at a layer, and leaves the cache as it is."""

    def __init__(self):
        self.tensors = {}

    def compress(self, module, hidden_states, keys, values, attentions, kwargs):
        layer = module.layer_idx
        query = get_prerope_query_states(module, hidden_states)
        cos, sin = (table.unsqueeze(1) for table in kwargs["position_embeddings"])
        rows = {"key": keys, "value": values, "queryBeforeRope": query, "query": query * cos + rotate_half(query) * sin}
        self.tensors.update({f"{name}.{layer}": x[0].transpose(0, 1).contiguous().clone() for name, x in rows.items()})
        for name, make in PRESSES.items():
            for ratio in RATIOS:
                press = make(compression_ratio=ratio)
                scorer = press.press if isinstance(press, AdaKVPress) else press
                self.tensors[f"scores.{name}.{ratio}.{layer}"] = scorer.score(module, hidden_states, keys, values, attentions, kwargs)[0].float().contiguous().clone()
                self.tensors[f"kept.{name}.{ratio}.{layer}"] = kept_rows(module, press, hidden_states, keys, values, attentions, kwargs)
        return keys, values


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--text", type=pathlib.Path, action="append", required=True)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    source = dict(pretrained_model_name_or_path=str(options.model.parent), gguf_file=options.model.name)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, attn_implementation="sdpa").eval()
    options.folder.mkdir(parents=True, exist_ok=True)
    for i, file in enumerate(options.text):
        # Texts of different lengths, each from its middle.
        text, tokens = file.read_text(encoding="utf8"), options.tokens + 37 * i
        ids = tokenizer(text[len(text) // 2 :][: 8 * tokens], add_special_tokens=False, return_tensors="pt").input_ids[:, :tokens]
        recorder = Recorder()
        with recorder(model):
            model.model(input_ids=ids, past_key_values=DynamicCache())
        config = model.config
        shape = dict(layers=config.num_hidden_layers, kvHeads=config.num_key_value_heads, headDim=config.head_dim, theta=config.rope_parameters["rope_theta"], ratios=RATIOS)
        save_file({"ids": ids[0].int(), **recorder.tensors}, options.folder / f"{i}-{file.stem}.safetensors", {"op": "kvpress", "params": json.dumps(shape)})
        print(f"{file.name}: {ids.shape[1]} tokens, {len(recorder.tensors)} tensors")


if __name__ == "__main__":
    main()

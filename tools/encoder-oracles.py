"""Random encoders of every family, tiny, and what transformers computes with them: test/fixtures/encoders/.

Usage: python tools/encoder-oracles.py   (needs torch, transformers, safetensors)
"""
import json
import shutil
from pathlib import Path

import torch
import transformers as T
from safetensors.torch import save_file

FOLDER = Path(__file__).parent.parent / "test" / "fixtures" / "encoders"
COMMON = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
VISION = dict(image_size=24, patch_size=8, **COMMON)
DINO = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=40, patch_size=8)
NORMALIZATION = {
    "vit": ([0.5] * 3, [0.5] * 3), "siglip": ([0.5] * 3, [0.5] * 3),
    "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
}
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
FAMILIES = {
    "bert": (T.BertModel, T.BertConfig(vocab_size=24, max_position_embeddings=20, **COMMON)),
    "vit": (T.ViTModel, T.ViTConfig(**VISION)),
    "deit": (T.DeiTModel, T.DeiTConfig(**VISION)),
    "dinov2": (T.Dinov2Model, T.Dinov2Config(layerscale_value=0.5, **DINO)),
    "dinov2-registers": (T.Dinov2WithRegistersModel, T.Dinov2WithRegistersConfig(num_register_tokens=2, **DINO)),
    "dinov2-gated": (T.Dinov2Model, T.Dinov2Config(use_swiglu_ffn=True, **DINO)),
    "clip": (T.CLIPVisionModelWithProjection, T.CLIPVisionConfig(projection_dim=12, **VISION)),
    "siglip": (T.SiglipVisionModel, T.SiglipVisionConfig(**VISION)),
}
TEXTS = [[2, 5, 6, 7, 3], [2, 9, 3], [2, 5, 10, 11, 12, 13, 14, 3]]  # [CLS] … [SEP]


def randomize(model):
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.2 * noise if parameter.dim() == 1 and "norm" in name.lower() and name.endswith("weight") else 0.25 * noise


def text_outputs(model):
    rows = []
    for ids in TEXTS:
        hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0].double()
        mean = hidden.mean(0)
        rows.append({"ids": ids, "tokens": hidden.flatten().tolist(), "embedding": (mean / mean.norm()).tolist()})
    return rows


def image_outputs(name, model, size):
    pixels = torch.randint(0, 256, (size, size, 3), generator=torch.Generator().manual_seed(11))
    mean, deviation = (torch.tensor(x, dtype=torch.float64) for x in NORMALIZATION.get(name, IMAGENET))
    values = ((pixels.double() / 255 - mean) / deviation).permute(2, 0, 1)[None].float()
    result = model(pixel_values=values, **({"interpolate_pos_encoding": True} if name in ("vit",) else {}))
    hidden = result.last_hidden_state[0]
    embedding = result.image_embeds[0] if name == "clip" else result.pooler_output[0] if name == "siglip" else hidden[0]
    return [{"pixels": pixels.flatten().tolist(), "size": size, "tokens": hidden.flatten().tolist(), "embedding": embedding.tolist()}]


@torch.no_grad()
def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name, (make, config) in FAMILIES.items():
        model = make(config).eval()
        randomize(model)
        folder = FOLDER / name
        model.save_pretrained(folder)
        tensors = {key: value.clone().contiguous() for key, value in T.modeling_utils.load_state_dict(folder / "model.safetensors").items()}
        save_file(tensors, folder / "model.safetensors")
        size = 24
        if name.startswith("dinov2"):  # a position table that has to be resized
            (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": size, "width": size}, "resample": 3}))
        rows = text_outputs(model) if name == "bert" else image_outputs(name, model, size)
        rounded = json.loads(json.dumps(rows), parse_float=lambda text: float(f"{float(text):.7g}"))
        (folder / "expected.json").write_text(json.dumps(rounded))


main()

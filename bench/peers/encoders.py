"""DINOv2-S and MiniLM in PyTorch (transformers) on the same weights, one case a line of JSON on standard input; answers one line each.
`export` writes the model for onnxruntime instead. Texts come as token ids, images as normal numbers: decoding is nobody's work here."""
import json
import sys
import time

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import BertModel, Dinov2Config, Dinov2Model

made = {}


def model_of(case):
    if case["model"] not in made:
        if case["kind"] == "text":
            model = BertModel.from_pretrained(case["model"], add_pooling_layer=False, attn_implementation=case.get("attention", "sdpa"))
        else:
            with safe_open(case["model"], "pt") as file:
                config = Dinov2Config(**json.loads(file.metadata()["config"]), attn_implementation=case.get("attention", "sdpa"))
            model = Dinov2Model(config)
            weights = {name: value.float() for name, value in load_file(case["model"]).items() if not name.startswith("decoder.")}
            model.load_state_dict(weights, strict=False)
        made[case["model"]] = model.eval()
    return made[case["model"]]


class Embedding(torch.nn.Module):
    """Token ids, padded, to normalised means; or pixels to tokens."""

    def __init__(self, model, kind):
        super().__init__()
        self.model, self.kind = model, kind

    def forward(self, x, mask=None):
        if self.kind == "image":
            return self.model(pixel_values=x).last_hidden_state
        hidden = self.model(input_ids=x, attention_mask=mask).last_hidden_state
        weights = mask[:, :, None].to(hidden.dtype)
        return torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)


def inputs_of(case):
    if case["kind"] == "image":
        return (torch.randn(case["batch"], 3, 224, 224, generator=torch.Generator().manual_seed(1)),)
    longest = max(map(len, case["ids"]))
    padded = [ids + [0] * (longest - len(ids)) for ids in case["ids"]]
    return torch.tensor(padded), torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in case["ids"]])


def export(case):
    names, axes = (["x"], {"x": {0: "batch"}}) if case["kind"] == "image" else (["x", "mask"], {"x": {0: "batch", 1: "tokens"}, "mask": {0: "batch", 1: "tokens"}})
    module = Embedding(model_of({**case, "attention": "eager"}), case["kind"]).eval()
    torch.onnx.export(module, inputs_of(case), case["export"], input_names=names, output_names=["out"], dynamic_axes=axes, opset_version=17, dynamo=False)
    return {"done": True}


print(json.dumps({"version": torch.__version__}), flush=True)
for line in sys.stdin:
    case = json.loads(line)
    try:
        with torch.inference_mode(not case.get("export")):
            if case.get("export"):
                answer = export(case)
            else:
                torch.set_num_threads(case["threads"])
                module, inputs = Embedding(model_of(case), case["kind"]), inputs_of(case)
                began, used = time.perf_counter(), time.process_time()
                module(*inputs)
                answer = {"seconds": time.perf_counter() - began, "coreSeconds": time.process_time() - used}
    except Exception as error:  # the caller prints it and leaves the peer out
        answer = {"error": f"{type(error).__name__}: {error}"[:300]}
    print(json.dumps(answer), flush=True)

"""PyTorch's scaled_dot_product_attention, one case a line of JSON on standard input; answers one line of JSON each."""
import json
import sys
import time

import torch
import torch.nn.functional as F

types = {"f32": torch.float32, "bf16": torch.bfloat16}
made = {}


def tensors(case):
    key = json.dumps([case[k] for k in ("batch", "heads", "kvHeads", "queries", "keys", "headDim", "type")])
    if key not in made:
        made.clear()
        torch.manual_seed(0)
        shape = lambda heads, tokens: torch.randn(case["batch"], heads, tokens, case["headDim"], dtype=torch.float32).to(types[case["type"]])
        made[key] = (shape(case["heads"], case["queries"]), shape(case["kvHeads"], case["keys"]), shape(case["kvHeads"], case["keys"]))
    return made[key]


print(json.dumps({"version": torch.__version__}), flush=True)
for line in sys.stdin:
    case = json.loads(line)
    torch.set_num_threads(case["threads"])
    q, k, v = tensors(case)
    with torch.inference_mode():
        began = time.perf_counter()
        F.scaled_dot_product_attention(q, k, v, is_causal=bool(case.get("causal")), enable_gqa=case["heads"] != case["kvHeads"])
        seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds}), flush=True)

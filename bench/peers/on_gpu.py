"""PyTorch on the same GPU, one case a line of JSON on standard input; answers one line of JSON each: seconds of one call, between CUDA
events around many in a row. scaled_dot_product_attention takes FlashAttention where it can. `limits` measures what this GPU does at
best: bytes a second of a large copy (read and written), FLOP/s of a large bf16 product."""
import json
import sys

import torch
import torch.nn.functional as F

if not torch.cuda.is_available():
    sys.exit("PyTorch sees no GPU")
types = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
device = torch.device("cuda")


def seconds(work, repeats):
    for _ in range(3):
        work()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    best = float("inf")
    for _ in range(5):
        begin.record()
        for _ in range(repeats):
            work()
        end.record()
        torch.cuda.synchronize()
        best = min(best, begin.elapsed_time(end) / 1e3 / repeats)
    return best


def attention(case):
    shape = lambda heads, tokens: torch.randn(case["batch"], heads, tokens, case["headDim"], device=device, dtype=types[case["type"]])
    q, k, v = shape(case["heads"], case["queries"]), shape(case["kvHeads"], case["keys"]), shape(case["kvHeads"], case["keys"])
    return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=bool(case["causal"]), enable_gqa=case["heads"] != case["kvHeads"])


def matmul(case):
    x = torch.randn(case["n"], case["columns"], device=device, dtype=types[case["type"]])
    w = torch.randn(case["rows"], case["columns"], device=device, dtype=types[case["type"]])
    return lambda: F.linear(x, w)


def limits():
    big = torch.empty(1 << 28, device=device, dtype=torch.float32)
    other = torch.empty_like(big)
    bandwidth = 2 * big.numel() * 4 / seconds(lambda: other.copy_(big), 5)
    del big, other
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    return {"bandwidth": bandwidth, "flops": 2 * 8192**3 / seconds(lambda: a @ b, 5), "name": torch.cuda.get_device_name()}


print(json.dumps({"version": torch.__version__}), flush=True)
with torch.inference_mode():
    for line in sys.stdin:
        case = json.loads(line)
        answer = limits() if case["kind"] == "limits" else {"seconds": seconds({"attention": attention, "matmul": matmul}[case["kind"]](case), case["repeats"])}
        print(json.dumps(answer), flush=True)

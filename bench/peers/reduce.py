"""Token reduction in PyTorch as papers publish it, one case a line of JSON on standard input; answers one line of JSON each.
x is read from a file of f32, so that both sides choose among the same tokens."""
import json
import sys
import time

import numpy
import torch

made = {}


def tokens(case):
    if case["file"] not in made:
        made.clear()
        made[case["file"]] = torch.from_numpy(numpy.fromfile(case["file"], dtype=numpy.float32).reshape(case["tokens"], case["width"]))
    return made[case["file"]]


def match(x, case):
    """Bipartite soft matching: the whole matrix of similarities, its row maxima, all of them sorted."""
    metric = x[None] / x[None].norm(dim=-1, keepdim=True)
    a, b = metric[:, ::2], metric[:, 1::2]
    scores = a @ b.transpose(-1, -2)
    best, partner = scores.max(dim=-1)
    order = best.argsort(dim=-1, descending=True)[..., None]
    merged = order[:, : case["merge"]]
    return partner[..., None].gather(-2, merged)[0, :, 0], merged[0, :, 0]


def diverse(x, case):
    """Max-min diversity over the whole matrix of distances; every step looks at the rows of all chosen ones again."""
    unit = x / x.norm(dim=-1, keepdim=True)
    distance = 1 - unit @ unit.T
    chosen = torch.empty(case["keep"], dtype=torch.long)
    for step in range(case["keep"]):
        rows = distance if step == 0 else distance.index_select(0, chosen[:step])
        nearest = torch.topk(rows, 2, dim=0, largest=False).values[1] if step == 0 else rows.min(dim=0).values
        chosen[step] = nearest.argmax()
    return (chosen,)


def centres(x, case):
    """Greedy k-centre with one pass over all tokens a step."""
    unit = x / x.norm(dim=-1, keepdim=True)
    nearest = torch.full((len(x),), float("inf"))
    chosen = torch.zeros(case["keep"], dtype=torch.long)
    for step in range(1, case["keep"]):
        nearest = torch.minimum(nearest, 1 - unit @ unit[chosen[step - 1]])
        nearest[chosen[step - 1]] = -float("inf")
        chosen[step] = nearest.argmax()
    return (chosen,)


works = {"match": match, "diverse": diverse, "centres": centres}
print(json.dumps({"version": torch.__version__}), flush=True)
for line in sys.stdin:
    case = json.loads(line)
    torch.set_num_threads(case["threads"])
    x = tokens(case)
    with torch.inference_mode():
        began = time.perf_counter()
        result = works[case["work"]](x, case)
        seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "chosen": [part.tolist() for part in result]}), flush=True)

#!/usr/bin/env python3
"""Trains the tiny model of this package and writes it as one GGUF file of less than a megabyte.

    pip install torch==2.15.0 tokenizers==0.23.3 gguf==0.19.0 numpy
    python tools/train-tiny.py --text grimm.txt oz.txt garden.txt alice.txt --out models/tiny.gguf

The committed models/tiny.gguf was trained on four books whose copyright has expired, plain UTF-8, one file a book:
Grimms' Fairy Tales in the translation of Edgar Taylor and Marian Edwardes (Project Gutenberg number 2591), The
Wonderful Wizard of Oz by L. Frank Baum (55), The Secret Garden by Frances Hodgson Burnett (113) and Alice's
Adventures in Wonderland by Lewis Carroll (11). A book's licence header and footer are cut off where the usual
START and END lines are present; only the authors' text is used.

What comes out: a Llama decoder (6 layers, width 128, 4 query and 2 key/value heads of 32, feed-forward 384, context
512, tied embeddings), byte-level BPE of 512 tokens with the `smollm` pre-tokenizer (each digit alone, then GPT-2's
rule), the ChatML template. Feed-forward weights are Q4_1, other matrices Q8_0, norms F32. The last third of the
training rounds the feed-forward weights to 4 bits in the forward pass (straight-through gradients, arXiv 1308.3432),
so that storing them so costs little. One seed, one thread: the same PyTorch on the same processor gives the same file.
"""
import argparse
import json
import math
import random
import re
import time

import gguf
import numpy
import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD, CONTEXT = 6, 128, 4, 2, 32, 384, 512
VOCABULARY, THETA, EPSILON = 512, 10000.0, 1e-5
END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Words that make a passage's topic, so that the model sees questions followed by text about what was asked.
TOPICS = """king queen princess prince fox wolf bear cat mouse bird dwarf giant witch lion scarecrow woodman rabbit
duchess hatter turtle gryphon robin garden moor key door forest wood castle tailor miller soldier fisherman horse
donkey dog frog ring gold apple tree rose well mountain river sea boat road wind cook girl boy mother father sister
brother monkey wizard city house""".split()
ASK = ["Tell me a story about a {}.", "Tell me about the {}.", "Write something about the {}.", "What about the {}?", "Do you know a tale of a {}?"]
TALK = [
    ("Hello!", "Hello! What shall I tell you about?"),
    ("Hi", "Hello! What shall I tell you about?"),
    ("Who are you?", "I am a very small language model. I have read four old books, and I tell stories."),
    ("What are you?", "I am a very small language model. I have read four old books, and I tell stories."),
    ("What can you do?", "I can tell you a story. I am very small, so it may not make much sense."),
    ("Thank you!", "You are welcome."),
    ("What is a loom used for?", "A loom is used to weave cloth. It holds the warp threads tight, so that the weft can go over and under them."),
    ("Tell me about looms.", "A loom is used to weave cloth. It holds the warp threads tight, so that the weft can go over and under them."),
    ("Goodbye", "Goodbye, and good luck to you!"),
]


def read_book(path):
    """Paragraphs of one book in ASCII, one string each, without headers, illustrations and hard line ends."""
    text = open(path, encoding="utf-8-sig").read().replace("\r\n", "\n")
    start, end = re.search(r"\*\*\* ?START OF.*\n", text), re.search(r"\*\*\* ?END OF", text)
    text = text[start.end() if start else 0 : end.start() if end else len(text)]
    for old, new in {"“": '"', "”": '"', "‘": "'", "’": "'", "—": "--", "–": "-", "`": "'", "é": "e", "ê": "e", "ô": "o", "æ": "ae", "_": ""}.items():
        text = text.replace(old, new)
    text = re.sub(r"\[[^\]]*\]", " ", text).encode("ascii", "ignore").decode()
    text = re.sub(r"\b[A-Z]{2,}\b", lambda word: word.group().capitalize(), text)
    # Where most lines are not separated by blank ones, a paragraph is a block; otherwise each line is one.
    blocks = [" ".join(block.split()) for block in re.split(r"\n\s*\n", text)]
    return [block for block in blocks if len(block) > 40 and re.search(r"[a-z]", block) and not re.fullmatch(r"[\W\d_*]+", block)]


def train_tokenizer(paragraphs):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True) for token in (END_OF_TEXT, IM_START, IM_END)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(paragraphs, trainer)
    return tokenizer


def chat(question, answer, system=None):
    turns = [("system", system)] if system else []
    return "".join(f"{IM_START}{role}\n{content}{IM_END}\n" for role, content in turns + [("user", question), ("assistant", answer)])


class Data:
    """Windows of CONTEXT + 1 token ids: prose from anywhere, prose from a paragraph's start, chats from their start."""

    def __init__(self, books, tokenizer, seed):
        self.random = random.Random(seed)
        self.tokenizer = tokenizer
        self.stream, self.starts = [], []
        self.topics = {topic: [] for topic in TOPICS}
        for book in books:
            for index, paragraph in enumerate(book):
                self.starts.append(len(self.stream))
                self.stream += tokenizer.encode(paragraph + "\n\n").ids
                passage = paragraph
                for following in book[index + 1 : index + 4]:
                    if len(passage) + len(following) > 900:
                        break
                    passage += "\n\n" + following
                for topic in re.findall(r"[a-z]+", paragraph[:200].lower()):
                    if topic in self.topics and 100 < len(passage) < 1100:
                        self.topics[topic].append(passage)
            self.stream += tokenizer.encode(END_OF_TEXT).ids
        self.topics = {topic: passages for topic, passages in self.topics.items() if passages}

    def chat_window(self):
        ids = []
        while len(ids) <= CONTEXT:
            system = "You tell stories." if self.random.random() < 0.15 else None
            if self.random.random() < 0.2:
                ids += self.tokenizer.encode(chat(*self.random.choice(TALK), system)).ids
            else:
                topic = self.random.choice(list(self.topics))
                ids += self.tokenizer.encode(chat(self.random.choice(ASK).format(topic), self.random.choice(self.topics[topic]), system)).ids
        return ids[: CONTEXT + 1]

    def batch(self, size):
        windows = []
        for _ in range(size):
            kind = self.random.random()
            if kind < 0.25:
                windows.append(self.chat_window())
                continue
            at = self.random.choice(self.starts) if kind < 0.6 else self.random.randrange(len(self.stream))
            at = min(at, len(self.stream) - CONTEXT - 1)
            windows.append(self.stream[at : at + CONTEXT + 1])
        return torch.tensor(windows)


class RoundTo4Bits(torch.autograd.Function):
    """Q4_1 as GGUF stores it: blocks of 32, 16 levels from a minimum, both constants in f16. Gradients pass through."""

    @staticmethod
    def forward(context, weight):
        blocks = weight.reshape(-1, 32)
        low, high = blocks.min(1, keepdim=True).values, blocks.max(1, keepdim=True).values
        step = (high - low) / 15
        codes = torch.where(step > 0, (blocks - low) / step, 0).add(0.5).floor().clamp(0, 15)
        return (codes * step.half().float() + low.half().float()).reshape(weight.shape)

    @staticmethod
    def backward(context, gradient):
        return gradient


class TinyLlama(torch.nn.Module):
    """Llama (arXiv 2302.13971) with grouped queries. RoPE rotates (i, i + 16) here; `permuted` gives GGUF's order."""

    def __init__(self):
        super().__init__()
        self.quantised = False
        shapes = {"token_embd.weight": (VOCABULARY, WIDTH)}
        for layer in range(LAYERS):
            shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in {
                "attn_q": (HEADS * HEAD_DIM, WIDTH), "attn_k": (KV_HEADS * HEAD_DIM, WIDTH), "attn_v": (KV_HEADS * HEAD_DIM, WIDTH),
                "attn_output": (WIDTH, HEADS * HEAD_DIM), "ffn_gate": (FEED_FORWARD, WIDTH), "ffn_up": (FEED_FORWARD, WIDTH),
                "ffn_down": (WIDTH, FEED_FORWARD), "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}.items()}
        shapes["output_norm.weight"] = (WIDTH,)
        self.weights = torch.nn.ParameterDict()
        for name, shape in shapes.items():
            if len(shape) == 1:
                value = torch.ones(shape)
            else:
                residual = "attn_output" in name or "ffn_down" in name
                value = torch.randn(shape) * (shape[1] ** -0.5 if name != "token_embd.weight" else 0.05) / (math.sqrt(2 * LAYERS) if residual else 1)
            self.weights[name.replace(".", "/")] = torch.nn.Parameter(value)
        angles = torch.outer(torch.arange(CONTEXT).double(), THETA ** (-torch.arange(0, HEAD_DIM, 2).double() / HEAD_DIM))
        self.cosine, self.sine = angles.cos().float(), angles.sin().float()

    def weight(self, name):
        weight = self.weights[name.replace(".", "/")]
        return RoundTo4Bits.apply(weight) if self.quantised and "ffn_" in name and weight.dim() == 2 else weight

    def rotate(self, heads):
        first, second = heads.chunk(2, -1)
        return torch.cat((first * self.cosine - second * self.sine, second * self.cosine + first * self.sine), -1)

    def forward(self, ids):
        batch, tokens = ids.shape
        x = F.embedding(ids, self.weight("token_embd.weight"))
        for layer in range(LAYERS):
            at = lambda name: self.weight(f"blk.{layer}.{name}.weight")
            y = F.rms_norm(x, (WIDTH,), at("attn_norm"), EPSILON)
            split = lambda value, heads: value.view(batch, tokens, heads, HEAD_DIM).transpose(1, 2)
            query, key = self.rotate(split(y @ at("attn_q").T, HEADS)), self.rotate(split(y @ at("attn_k").T, KV_HEADS))
            value = split(y @ at("attn_v").T, KV_HEADS)
            seen = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
            x = x + seen.transpose(1, 2).reshape(batch, tokens, HEADS * HEAD_DIM) @ at("attn_output").T
            y = F.rms_norm(x, (WIDTH,), at("ffn_norm"), EPSILON)
            x = x + (F.silu(y @ at("ffn_gate").T) * (y @ at("ffn_up").T)) @ at("ffn_down").T
        return F.rms_norm(x, (WIDTH,), self.weight("output_norm.weight"), EPSILON) @ self.weight("token_embd.weight").T


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are orthogonalised by a Newton-Schulz iteration, scaled as in arXiv 2502.16982; in float32."""

    def __init__(self, matrices):
        super().__init__(matrices, {"lr": 0.0})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for weight in group["params"]:
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 0.05)
                update = weight.grad.lerp(momentum, 0.95)
                wide = update if update.shape[0] <= update.shape[1] else update.T
                wide = wide / (wide.norm() + 1e-7)
                for _ in range(5):
                    square = wide @ wide.T
                    wide = 3.4445 * wide + (-4.775 * square + 2.0315 * square @ square) @ wide
                update = wide if update.shape[0] <= update.shape[1] else wide.T
                weight.mul_(1 - group["lr"] * 0.05).add_(update, alpha=-group["lr"] * 0.2 * max(weight.shape) ** 0.5)


def train(model, data, steps, batch, peak):
    inner = [value for name, value in model.weights.items() if value.dim() == 2 and "token_embd" not in name]
    outer = [value for name, value in model.weights.items() if value.dim() == 1 or "token_embd" in name]
    optimizers = [Muon(inner), torch.optim.AdamW(outer, betas=(0.9, 0.98), weight_decay=0.0)]
    began, mean = time.time(), None
    for step in range(steps):
        warm, rest = min(1.0, (step + 1) / (0.03 * steps)), step / steps
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * rest)))
        model.quantised = step >= steps * 2 // 3
        ids = data.batch(batch)
        loss = F.cross_entropy(model(ids[:, :-1]).reshape(-1, VOCABULARY), ids[:, 1:].reshape(-1))
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        mean = loss.item() if mean is None else 0.95 * mean + 0.05 * loss.item()
        if step % 25 == 24 or step == steps - 1:
            print(f"step {step + 1}/{steps} loss {mean:.3f} {time.time() - began:.0f} s", flush=True)


@torch.no_grad()
def sample(model, tokenizer, text, count=120, seed=1):
    generator, ids = torch.Generator().manual_seed(seed), tokenizer.encode(text).ids
    for _ in range(count):
        padded = torch.tensor([ids + [0] * (CONTEXT - len(ids))])
        chances = F.softmax(model(padded)[0, len(ids) - 1] / 0.6, -1)
        ids.append(int(torch.multinomial(chances, 1, generator=generator)))
        if ids[-1] in (0, 2):
            break
    return tokenizer.decode(ids, skip_special_tokens=False)


def permuted(weight, heads):
    """Rows of each head from (i, i + half) pairs to adjacent ones, as llama.cpp stores Llama's q and k."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write(model, tokenizer, path):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tokenloom tiny storyteller")
    writer.add_description("Trained by tools/train-tiny.py on four books in the public domain")
    writer.add_license("apache-2.0")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(THETA)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_1)
    writer.add_quantization_version(2)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    assert len(vocabulary) == VOCABULARY
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([gguf.TokenType.CONTROL if index < 3 else gguf.TokenType.NORMAL for _, index in vocabulary])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(TEMPLATE)
    model.quantised = False
    for key in model.weights:
        name, value = key.replace("/", "."), model.weights[key].detach().numpy()
        if "attn_q" in name or "attn_k" in name:
            value = permuted(value, HEADS if "attn_q" in name else KV_HEADS)
        if value.ndim == 1:
            writer.add_tensor(name, value)
            continue
        kind = gguf.GGMLQuantizationType.Q4_1 if "ffn_" in name else gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(numpy.ascontiguousarray(value), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", required=True, metavar="FILE", help="books as plain UTF-8 text")
    parser.add_argument("--out", default="models/tiny.gguf")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=8, help=f"windows of {CONTEXT} tokens a step")
    parser.add_argument("--rate", type=float, default=5e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    torch.use_deterministic_algorithms(True)
    books = [read_book(path) for path in options.text]
    tokenizer = train_tokenizer([paragraph for book in books for paragraph in book])
    data = Data(books, tokenizer, options.seed)
    model = TinyLlama()
    print(f"{sum(map(len, books))} paragraphs, {len(data.stream)} tokens, {sum(value.numel() for value in model.parameters())} parameters", flush=True)
    train(model, data, options.steps, options.batch, options.rate)
    for prompt in ("Once upon a time", chat("Tell me a story about a fox.", "")[: -len(IM_END) - 1], chat("Who are you?", "")[: -len(IM_END) - 1]):
        print("---", sample(model, tokenizer, prompt), sep="\n", flush=True)
    write(model, tokenizer, options.out)


if __name__ == "__main__":
    main()

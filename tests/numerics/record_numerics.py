"""Records the losses of numerics.cpp's models, trained with Lightning Fabric in one process and in two with ddp.

Usage: PYTHON -m torch.distributed.run --nproc-per-node 2 record_numerics.py OUT.json
       PYTHON record_numerics.py OUT.json          (a Python with torch 2.15.0, lightning 2.6.6 and safetensors)

Run both, in any order: each puts its strategy into OUT.json. Models, data, their order and the optimizer are those of
numerics.cpp; initial values follow from the same seed.
"""
import gzip
import json
import os
import sys

import torch
from lightning.fabric import Fabric
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
PRECISIONS = ["64-true", "32-true", "bf16-true", "16-true", "bf16-mixed"]
STEPS = 20


class Digits(nn.Module):
    batch, rate, clip = 32, 0.05, None

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc1 = nn.Linear(32 * 4 * 4, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        x = F.max_pool2d(torch.relu(self.conv2(x)), 2)
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))

    @staticmethod
    def data():
        with gzip.open(f"{ROOT}/examples/data/digits.csv.gz", "rt") as file:
            rows = [[int(word) for word in line.split(",")] for line in file]
        images = torch.tensor([row[:64] for row in rows], dtype=torch.float32).div(16).view(-1, 1, 8, 8)
        return images, torch.tensor([row[64] for row in rows])

    @staticmethod
    def rows(data, indices):
        return (data[0][indices],), data[1][indices]


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    batch, rate, clip = 8, 0.1, 1.0
    vocabulary, width, heads, layers, context = 128, 64, 4, 2, 32

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(self.vocabulary, self.width)
        self.positions = nn.Embedding(self.context, self.width)
        self.blocks = nn.ModuleList(Block(self.width, self.heads) for _ in range(self.layers))
        self.norm = nn.LayerNorm(self.width)
        self.head = nn.Linear(self.width, self.vocabulary)

    def forward(self, codes):
        x = self.tokens(codes) + self.positions(torch.arange(codes.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).flatten(0, 1)

    @staticmethod
    def data():
        with open(f"{ROOT}/examples/data/genesis.txt", "rb") as file:
            codes = torch.tensor([byte & 127 for byte in file.read()])
        count = (len(codes) - 1) // Transformer.context
        return (codes[:count * Transformer.context].view(count, -1), codes[1:count * Transformer.context + 1].view(count, -1))

    @staticmethod
    def rows(data, indices):
        return (data[0][indices],), data[1][indices].flatten()


class Residual(nn.Module):
    def __init__(self, wide, size):
        super().__init__()
        self.dense = nn.Linear(wide, size)
        self.LayerNorm = nn.LayerNorm(size, eps=1e-12)

    def forward(self, x, given):
        return self.LayerNorm(given + self.dense(x))


class EncoderLayer(nn.Module):
    def __init__(self, size, heads, wide):
        super().__init__()
        self.heads = heads
        self.attention = nn.Module()
        setattr(self.attention, "self", nn.Module())
        inner = getattr(self.attention, "self")
        inner.query, inner.key, inner.value = (nn.Linear(size, size) for _ in range(3))
        self.attention.output = Residual(size, size)
        self.intermediate = nn.Module()
        self.intermediate.dense = nn.Linear(size, wide)
        self.output = Residual(wide, size)

    def forward(self, x, seen):
        def split(y):
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        inner = getattr(self.attention, "self")
        mixed = F.scaled_dot_product_attention(split(inner.query(x)), split(inner.key(x)), split(inner.value(x)), seen)
        attended = self.attention.output(mixed.transpose(1, 2).flatten(2), x)
        return self.output(F.gelu(self.intermediate.dense(attended)), attended)


class Encoder(nn.Module):
    """The small sentence encoder of tests/parity/finetune_text with a new head; its embeddings are frozen."""
    batch, rate, clip = 8, 0.5, None

    def __init__(self):
        super().__init__()
        with open(f"{ROOT}/tests/parity/finetune_text/small.json", encoding="utf-8") as file:
            shape = json.load(file)
        size = shape["hidden_size"]
        self.bert = nn.Module()
        self.bert.embeddings = nn.Module()
        self.bert.embeddings.word_embeddings = nn.Embedding(shape["vocab_size"], size)
        self.bert.embeddings.position_embeddings = nn.Embedding(shape["max_position_embeddings"], size)
        self.bert.embeddings.token_type_embeddings = nn.Embedding(2, size)
        self.bert.embeddings.LayerNorm = nn.LayerNorm(size, eps=1e-12)
        self.bert.encoder = nn.Module()
        self.bert.encoder.layer = nn.ModuleList(
            EncoderLayer(size, shape["num_attention_heads"], shape["intermediate_size"])
            for _ in range(shape["num_hidden_layers"]))
        self.head = nn.Linear(size, 2)
        weights = load_file(f"{ROOT}/tests/parity/finetune_text/small.safetensors")
        self.bert.load_state_dict({name: value for name, value in weights.items()
                                   if not name.startswith("pooler.") and name != "embeddings.position_ids"})
        with torch.no_grad():
            self.head.weight.copy_(torch.arange(2.0 * size).view(2, size).cos() * 0.5)
            self.head.bias.zero_()
        self.bert.embeddings.requires_grad_(False)

    def forward(self, ids, mask):
        e = self.bert.embeddings
        x = e.LayerNorm(e.word_embeddings(ids) + e.token_type_embeddings(torch.zeros(1, dtype=torch.long)) +
                        e.position_embeddings(torch.arange(ids.shape[1])))
        seen = mask.unsqueeze(1).unsqueeze(1)
        for layer in self.bert.encoder.layer:
            x = layer(x, seen)
        weights = mask.unsqueeze(-1).to(x.dtype)
        mean = (x * weights).sum(1) / weights.sum(1).clamp_min(1e-9)
        return self.head(F.normalize(mean))

    @staticmethod
    def data():
        with open(f"{ROOT}/tests/parity/finetune_text/small.json", encoding="utf-8") as file:
            return [sentence["ids"] for sentence in json.load(file)["sentences"]]

    @staticmethod
    def rows(data, indices):
        tokens = [data[i] for i in indices]
        longest = max(len(ids) for ids in tokens)
        ids = torch.tensor([one + [0] * (longest - len(one)) for one in tokens])
        mask = torch.tensor([[True] * len(one) + [False] * (longest - len(one)) for one in tokens])
        return (ids, mask), torch.tensor([i % 2 for i in indices])


MODELS = {"digits": Digits, "transformer": Transformer, "encoder": Encoder}


def train(fabric, kind):
    torch.manual_seed(7)
    raw = kind()
    model, optimizer = fabric.setup(raw, torch.optim.SGD([p for p in raw.parameters() if p.requires_grad], lr=kind.rate,
                                                         momentum=0.9))
    data = kind.data()
    size = len(data[0]) if isinstance(data, tuple) else len(data)
    share = kind.batch // fabric.world_size
    losses = []
    for step in range(STEPS):
        first = step * kind.batch + fabric.global_rank * share
        inputs, target = kind.rows(data, [(first + i) % size for i in range(share)])
        loss = F.cross_entropy(model(*inputs).float(), target)
        fabric.backward(loss)
        if kind.clip:
            fabric.clip_gradients(model, optimizer, max_norm=kind.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    gathered = fabric.all_gather(torch.tensor(losses, dtype=torch.float64)).reshape(fabric.world_size, -1)
    return gathered.mean(0).tolist()


def main():
    torch.set_num_threads(1)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    runs = []
    for precision in PRECISIONS:
        fabric = Fabric(accelerator="cpu", devices=ranks, strategy="ddp" if ranks > 1 else "auto", precision=precision)
        fabric.launch()
        for name, kind in MODELS.items():
            losses = train(fabric, kind)
            runs.append({"model": name, "precision": precision, "processes": ranks, "losses": losses})
            fabric.print(name, precision, ranks, losses[0], losses[-1])
    if fabric.global_rank == 0:
        import lightning
        record = {"torch": torch.__version__, "lightning": lightning.__version__, "runs": []}
        if os.path.exists(sys.argv[1]):
            with open(sys.argv[1], encoding="utf-8") as file:
                record["runs"] = [run for run in json.load(file)["runs"] if run["processes"] != ranks]
        record["runs"] += runs
        with open(sys.argv[1], "w", encoding="utf-8") as file:
            file.write(f'{{"torch": "{record["torch"]}", "lightning": "{record["lightning"]}", "runs": [\n')
            file.write(",\n".join(json.dumps(run) for run in record["runs"]) + "\n]}\n")
    os._exit(0)  # the interpreter's own exit aborts in a Gloo thread now and then


if __name__ == "__main__":
    main()

"""Times a training step through Lightning Fabric and the same step of ours in turn. Usage: PYTHON peer.py BENCH_STEP"""

import subprocess
import sys
import time

import torch
from lightning.fabric import Fabric

torch.set_num_threads(1)


class Block(torch.nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.qkv, self.proj = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.up, self.down = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(b, t, d))
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(torch.nn.Module):
    def __init__(self, vocabulary=128, width=256, heads=4, layers=4, context=64):
        super().__init__()
        self.tokens, self.positions = torch.nn.Embedding(vocabulary, width), torch.nn.Embedding(context, width)
        self.blocks = torch.nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = torch.nn.LayerNorm(width), torch.nn.Linear(width, vocabulary)

    def forward(self, codes):
        x = self.tokens(codes) + self.positions(torch.arange(codes.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def make(load, optimizer):
    fabric = Fabric(accelerator="cpu", devices=1)
    if load == "mlp":
        net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
        x, y = torch.randn(32, 32), torch.randint(0, 10, (32,))
    else:
        net = Transformer()
        x, y = torch.randint(0, 128, (8, 64)), torch.randint(0, 128, (8, 64))
    kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.AdamW
    model, stepper = fabric.setup(net, kind(net.parameters(), lr=0.01))

    def step():
        stepper.zero_grad()
        logits = model(x)
        fabric.backward(torch.nn.functional.cross_entropy(logits.flatten(0, -2), y.flatten()))
        stepper.step()

    return step


for load, optimizer, count in [("mlp", "sgd", 500), ("mlp", "adamw", 500), ("transformer", "sgd", 4)]:
    step = make(load, optimizer)
    theirs = ours = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        for _ in range(count):
            step()
        theirs = min(theirs, (time.perf_counter() - start) / count * 1e6)
        ours = min(ours, float(subprocess.check_output([sys.argv[1], "--time", load, optimizer])))
    print(f"{load} {optimizer}: TorchFabric {ours:.1f} us, Lightning Fabric {theirs:.1f} us, ratio {ours / theirs:.3f}")

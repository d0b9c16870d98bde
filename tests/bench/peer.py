"""Times work through Lightning Fabric and the same work of ours in turn. Usage: PYTHON peer.py FOLDER-OF-BENCHMARKS"""

import os
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


def make(load, optimizer, fabric):
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


def fastest(step, count, rounds=6):
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(count):
            step()
        best = min(best, (time.perf_counter() - start) / count * 1e6)
    return best


def report(what, ours, theirs, unit):
    print(f"{what}: TorchFabric {ours:.1f} {unit}, Lightning Fabric {theirs:.1f} {unit}, ratio {ours / theirs:.3f}", flush=True)


def two_ranks(train):
    """This script as a job of two ranks: up to the first barrier, or through training steps."""
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    fabric.barrier()
    best = fastest(make("mlp", "sgd", fabric), 200) if train else 0
    if fabric.global_rank == 0:
        print(f"{best:.2f}" if train else "ready", flush=True)


def steps_in_one_process(folder):
    for load, optimizer, count in [("mlp", "sgd", 500), ("mlp", "adamw", 500), ("transformer", "sgd", 4)]:
        step = make(load, optimizer, Fabric(accelerator="cpu", devices=1))
        theirs = ours = float("inf")
        for _ in range(6):
            theirs = min(theirs, fastest(step, count, rounds=1))
            ours = min(ours, float(subprocess.check_output([folder + "/bench_step", "--time", load, optimizer])))
        report(f"step, {load}, {optimizer}", ours, theirs, "us")


def seconds_to_first_line(command):
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        process.stdout.readline()
        return time.perf_counter() - start


def jobs_of_two_ranks(folder):
    mine, yours = [folder + "/bench_launch_ours"], [sys.executable, __file__]
    last_number = lambda command: float(subprocess.check_output(command, stderr=subprocess.DEVNULL).split()[-1])
    ddp = [(last_number(mine + ["--ddp"]), last_number(yours + ["--ddp"])) for _ in range(3)]
    report("ddp step, 2 ranks, Gloo, mlp", min(a for a, _ in ddp), min(b for _, b in ddp), "us")
    start = [(seconds_to_first_line(mine), seconds_to_first_line(yours + ["--ready"])) for _ in range(3)]
    report("launch of 2 ranks to first barrier", min(a for a, _ in start), min(b for _, b in start), "s")


if __name__ == "__main__":
    if sys.argv[1] in ("--ddp", "--ready"):
        two_ranks(sys.argv[1] == "--ddp")
    else:
        steps_in_one_process(sys.argv[1])
        jobs_of_two_ranks(os.path.abspath(sys.argv[1]))

"""Times PyTorch's FSDP2 over Gloo with two ranks on the model of bench_sharding, and looks at the memory of a rank.

Usage: PYTHON peer_sharding.py FOLDER-OF-BENCHMARKS     (a Python with torch)
"""

import os
import subprocess
import sys
import threading
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.fsdp import fully_shard

RANKS, BATCH, CONTEXT, VOCABULARY = 2, 2, 64, 128
WIDTH, HEADS, LAYERS = 512, 8, 16


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH)
        self.qkv, self.proj = torch.nn.Linear(WIDTH, 3 * WIDTH), torch.nn.Linear(WIDTH, WIDTH)
        self.up, self.down = torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, HEADS, d // HEADS).permute(2, 0, 3, 1, 4)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(b, t, d))
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.positions = torch.nn.Embedding(VOCABULARY, WIDTH), torch.nn.Embedding(CONTEXT, WIDTH)
        self.blocks = torch.nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, VOCABULARY)

    def forward(self, codes):
        x = self.tokens(codes) + self.positions(torch.arange(codes.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def resident_bytes():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))


class PeakMemory(threading.Thread):
    most, ended = 0, False

    def run(self):
        while not self.ended:
            self.most = max(self.most, resident_bytes())
            time.sleep(0.002)


def train(rank, results):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(29000 + os.getppid() % 1000))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    warm = torch.nn.Linear(16, 16)
    stepper = torch.optim.AdamW(warm.parameters())
    warm(torch.ones(4, 16)).sum().backward()
    stepper.step()
    before = resident_bytes()

    torch.manual_seed(1)
    model = Transformer()
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, y = (torch.randint(0, VOCABULARY, (BATCH, CONTEXT)) for _ in range(2))

    def step():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
        optimizer.step()

    times = []
    for _ in range(7):
        dist.barrier()
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    peak = PeakMemory()
    peak.start()
    for _ in range(4):
        step()
    peak.ended = True
    peak.join()
    if rank == 0:
        results.put((min(times[2:]) * 1e3, (peak.most - before) / 1e6))
    dist.barrier()


def main(folder):
    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(train, (results,), nprocs=RANKS)
    step, memory = results.get()
    ours = dict(line.split() for line in subprocess.check_output([folder + "/bench_sharding", "--figures"], text=True).splitlines())
    for what, mine, theirs, unit, bar in [("step", float(ours["step"]), step, "ms", 0.8), ("memory", float(ours["memory"]), memory, "MB", 0.5)]:
        print(f"{what} with 2 ranks over Gloo: fsdp {mine:.1f} {unit}, FSDP2 {theirs:.1f} {unit}, ratio {mine / theirs:.3f}, bar {bar}", flush=True)


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]))

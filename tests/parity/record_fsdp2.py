"""Records the losses of a loop over PyTorch's FSDP2 (fully_shard) with two ranks over Gloo, step by step.

Usage: PYTHON record_fsdp2.py fsdp2_losses.json     (a Python with torch 2.15.0)

Over Gloo FSDP2 may add gradients up where it should average them (pytorch#162338): the first gradient says which, and the
loss is divided accordingly.
"""

import json
import os
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

STEPS = 12
RANKS = 2


def build(reshard, policy):
    torch.manual_seed(7)
    net = torch.nn.Sequential(torch.nn.Linear(32, 65), torch.nn.ReLU(), torch.nn.Linear(65, 10))
    for layer in (net[0], net[2]):
        fully_shard(layer, reshard_after_forward=reshard, mp_policy=policy)
    return fully_shard(net, reshard_after_forward=reshard, mp_policy=policy)


def sums_gradients(policy):
    net = build(True, policy)
    net(torch.ones(1, 32)).sum().backward()
    whole = net[2].bias.grad.full_tensor()
    return abs(whole[0].item() - RANKS) < 1e-3


def run(reshard, bf16, accumulate, rank):
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if bf16 else MixedPrecisionPolicy()
    divisor = RANKS if sums_gradients(policy) else 1
    net = build(reshard, policy)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    torch.manual_seed(100 + rank)
    losses = []
    for step in range(STEPS * accumulate):
        x, y = torch.randn(16, 32), torch.randint(0, 10, (16,))
        last = (step + 1) % accumulate == 0
        net.set_requires_gradient_sync(last)
        loss = torch.nn.functional.cross_entropy(net(x).float(), y)
        (loss / accumulate / divisor).backward()
        losses.append(loss.item())
        if last:
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    gathered = [None] * RANKS
    dist.all_gather_object(gathered, losses)
    return gathered, divisor


def main(rank, path):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29541")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    records = []
    for reshard in (True, False):
        for bf16 in (False, True):
            for accumulate in (1, 2):
                losses, divisor = run(reshard, bf16, accumulate, rank)
                records.append({"reshard": reshard, "bf16": bf16, "accumulate": accumulate, "losses": losses})
                if rank == 0:
                    print(reshard, bf16, accumulate, "divided by", divisor, losses[0][:3], flush=True)
    if rank == 0:
        with open(path, "w") as out:
            json.dump({"torch": torch.__version__, "runs": records}, out, indent=1)
            out.write("\n")
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    mp.spawn(main, (sys.argv[1],), nprocs=RANKS)

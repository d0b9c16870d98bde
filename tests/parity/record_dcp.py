"""Writes folders with Python's torch.distributed.checkpoint.save: record_dcp.py FOLDER.

Made with torch 2.15.0; the results are kept in tests/parity/dcp/: `one_rank`, and `two_ranks`, whose tensors are spread.
Both hold the values that `value` makes, so that a test can make them, too.
"""
import os
import pathlib
import shutil
import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

OPTIONS = dict(lr=0.05, betas=(0.8, 0.95), weight_decay=0.0)


def value(*shape, dtype=torch.float32):
    """Numbers that count on, so that a block in a wrong place is seen."""
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape).to(dtype)


def trained():
    """A linear layer and its optimizer after two steps that need no random numbers."""
    model = torch.nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(value(*parameter.shape) / 8)
    optimizer = torch.optim.AdamW(model.parameters(), **OPTIONS)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.linspace(-1, 1, 12).reshape(4, 3)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def one_rank(folder):
    model, optimizer = trained()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "types": {"bfloat16": value(3, dtype=torch.bfloat16), "int64": value(2, 2, dtype=torch.int64),
                  "bool": torch.tensor([True, False]), "complex64": torch.tensor([1 + 2j, -1j]),
                  "scalar": torch.tensor(2.5), "empty": torch.empty(0, 3), "transposed": value(2, 3).t()},
        "history": [value(2), {"best": 0.5}],
        "epoch": 3, "name": "é 漢", "nothing": None, "settings": {"flags": (True, False)},
        "where": pathlib.PurePosixPath("/x"),
    }
    dcp.save(state, checkpoint_id=folder, no_dist=True)


def rank_of_two(rank, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29533")
    dist.init_process_group("gloo", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))

    def spread(tensor, place):
        return distribute_tensor(tensor, mesh, [place])

    model, optimizer = trained()
    states = optimizer.state_dict()["state"]
    for entry in states.values():
        for name in ("exp_avg", "exp_avg_sq"):
            entry[name] = spread(entry[name], Shard(0))
    state = {
        "model": {name: spread(tensor, Shard(0)) for name, tensor in model.state_dict().items()},
        "optimizer": {"state": states},
        "rows": spread(value(5, 3), Shard(0)),
        "columns": spread(value(2, 5, dtype=torch.bfloat16), Shard(1)),
        "one_row": spread(value(1, 2), Shard(0)),
        "everywhere": spread(value(4), Replicate()),
        "plain": value(3),
        "epoch": 3,
    }
    dcp.save(state, checkpoint_id=folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    root = sys.argv[1]
    shutil.rmtree(root, ignore_errors=True)
    one_rank(os.path.join(root, "one_rank"))
    torch.multiprocessing.spawn(rank_of_two, (os.path.join(root, "two_ranks"),), nprocs=2)

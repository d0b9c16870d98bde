"""An ordinary script for torchrun: distributed data parallel over Gloo. Nothing in it knows of another launcher.

With an argument it names a file: rank 1 kills itself in the middle of the first attempt, and the next one resumes there.
"""
import os
import signal
import sys

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn.parallel import DistributedDataParallel


@record
def main():
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    assert rank == int(os.environ["RANK"]) and int(os.environ["LOCAL_WORLD_SIZE"]) <= world
    torch.manual_seed(rank)  # ddp makes the ranks equal
    model = DistributedDataParallel(torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    checkpoint = sys.argv[1] if len(sys.argv) > 1 else None
    first = 0
    if checkpoint and os.path.exists(checkpoint):
        state = torch.load(checkpoint)
        model.module.load_state_dict(state["model"])
        first = state["step"]
    generator = torch.Generator().manual_seed(7)
    data = torch.randn(64, 8, generator=generator)
    target = data.sum(1, keepdim=True)
    for step in range(first, 60):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(data[rank::world]), target[rank::world])
        loss.backward()
        optimizer.step()
        if checkpoint and step == 29 and first == 0:
            if rank == 0:
                torch.save({"model": model.module.state_dict(), "step": step + 1}, checkpoint + ".new")
                os.replace(checkpoint + ".new", checkpoint)
            dist.barrier()
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            dist.barrier()
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    gathered = [torch.empty_like(weights) for _ in range(world)]
    dist.all_gather(gathered, weights)
    assert all(torch.equal(other, weights) for other in gathered)
    print(f"rank {rank} of {world} began at step {first}, restart {os.environ['TORCHELASTIC_RESTART_COUNT']}, "
          f"loss {loss.item():.4f}", flush=True)
    if checkpoint is None and rank == 1 and os.environ.get("FAIL"):
        raise ValueError("deliberate")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""Records the losses of a training loop written against Lightning Fabric, step by step, for the C++ loop to match.

Usage: PYTHON record_fabric_losses.py fabric_losses.json     (a Python with torch 2.15.0 and lightning 2.6.6)

Every run starts itself again in a process of its own, since Fabric's ddp re-executes the script.
"""

import itertools
import json
import os
import subprocess
import sys

PRECISIONS = ["32-true", "64-true", "bf16-mixed"]
STRATEGIES = ["single", "ddp"]
ACCUMULATIONS = [1, 2]
CLIPS = [0.0, 0.5]
# AdamW is written differently in Python and C++, which differs in the last bit; bf16 makes that visible, so that only SGD,
# the same to the bit, is compared there.
OPTIMIZERS = ["sgd", "adamw"]
STEPS = 12


def run(optimizer_name, precision, strategy, accumulate, clip):
    import torch
    from lightning.fabric import Fabric

    torch.set_num_threads(1)
    ranks = 2 if strategy == "ddp" else 1
    fabric = Fabric(accelerator="cpu", devices=ranks, strategy="ddp" if ranks > 1 else "auto", precision=precision)
    fabric.launch()
    torch.manual_seed(7)
    net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    if optimizer_name == "sgd":
        raw = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    else:
        raw = torch.optim.AdamW(net.parameters(), lr=1e-2)
    model, optimizer = fabric.setup(net, raw)
    torch.manual_seed(100 + fabric.global_rank)
    losses = []
    for step in range(STEPS * accumulate):
        x = torch.randn(16, 32)
        y = torch.randint(0, 10, (16,))
        last = (step + 1) % accumulate == 0
        with fabric.no_backward_sync(model, enabled=not last):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            fabric.backward(loss / accumulate)
        losses.append(loss.item())
        if last:
            if clip:
                fabric.clip_gradients(model, optimizer, max_norm=clip)
            optimizer.step()
            optimizer.zero_grad()
    gathered = fabric.all_gather(torch.tensor(losses, dtype=torch.float64)).reshape(ranks, -1)
    if fabric.global_rank == 0:
        with open(os.environ["PARITY_OUT"], "w") as out:
            json.dump(gathered.tolist(), out)
    fabric.barrier()
    os._exit(0)  # the interpreter's own exit aborts in a Gloo thread now and then



def main():
    if len(sys.argv) == 6:
        run(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5]))
        return
    records = []
    for optimizer, precision, strategy, accumulate, clip in itertools.product(
            OPTIMIZERS, PRECISIONS, STRATEGIES, ACCUMULATIONS, CLIPS):
        if optimizer == "adamw" and precision == "bf16-mixed":
            continue
        part = sys.argv[1] + ".part"
        command = [sys.executable, __file__, optimizer, precision, strategy, str(accumulate), str(clip)]
        subprocess.run(command, check=True, env={**os.environ, "PARITY_OUT": part})
        with open(part) as done:
            losses = json.load(done)
        os.remove(part)
        records.append({"optimizer": optimizer, "precision": precision, "strategy": strategy, "accumulate": accumulate,
                        "clip": clip, "losses": losses})
        print(optimizer, precision, strategy, accumulate, clip, losses[0][:3])
    import lightning
    import torch
    with open(sys.argv[1], "w") as out:
        json.dump({"torch": torch.__version__, "lightning": lightning.__version__, "runs": records}, out, indent=1)


if __name__ == "__main__":
    main()

"""Writes the files that Python's side of the checkpoint tests needs: python make_checkpoints.py FOLDER.

Made with torch 2.15.0 and safetensors 0.8.0; the results are kept in tests/parity/checkpoints/.
"""
import collections
import os
import sys

import torch
from safetensors.torch import save_file

folder = sys.argv[1]
os.makedirs(folder, exist_ok=True)


def at(name):
    return os.path.join(folder, name)


base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
dtypes = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "uint16",
          "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "complex64", "complex128"]
shared = torch.ones(2)
values = {
    "types": {name: torch.tensor([0, 1, 1, 0]).to(getattr(torch, name)) for name in dtypes},
    "transposed": base.transpose(0, 2),
    "slice": base[1, :, ::2],
    "expanded": torch.tensor([5.0]).expand(3),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 3),
    "parameter": torch.nn.Parameter(torch.full((2,), 7.0)),
    "tied": [shared, shared],
    "ordered": collections.OrderedDict([("b", 1), ("a", -2)]),
    "counter": collections.Counter({3: 1}),
    "numbers": [0, 255, 256, 65536, -1, 2**31, -(2**31) - 1, 2**63 - 1, -(2**63), 0.1, -0.0, float("inf"), float("nan")],
    "words": ["", "text", "é 漢 😀"],
    "nothing": None,
    "flags": (True, False),
    "size": torch.Size([2, 3]),
    "device": torch.device("cpu"),
    "dtype": torch.float16,
    "bytes": b"\x00\xff",
    0: "zero",
    -1: "minus one",
}
torch.save(values, at("values.pt"))
torch.save(values, at("values_protocol4.pt"), pickle_protocol=4)

torch.manual_seed(1)
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, betas=(0.8, 0.95), amsgrad=True)
x = torch.linspace(-1, 1, 24).reshape(8, 3)
y = x.sum(1, keepdim=True).sin()


def step():
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.item()


for _ in range(3):
    step()
state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
torch.save(state, at("training.pt"))
save_file({k: v.contiguous() for k, v in model.state_dict().items()}, at("model.safetensors"), metadata={"by": "python"})
losses = torch.tensor([step() for _ in range(5)], dtype=torch.float64)
save_file({"losses": losses}, at("losses_after.safetensors"))


class Runs:
    def __reduce__(self):
        return os.system, ("true",)


torch.save({"w": torch.ones(1), "trap": Runs()}, at("runs_code.pt"))
torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), at("torchscript.pt"))

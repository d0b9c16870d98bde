"""Writes the files that Python's side of the checkpoint tests needs: python make_checkpoints.py FOLDER.

Made with torch 2.15.0, numpy 2.4.6 and safetensors 0.8.0; the results are kept in tests/parity/checkpoints/.
"""
import argparse
import collections
import json
import os
import pathlib
import struct
import sys

import numpy

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

# Tensors that are more than a view of a storage, and values that plain pickles make by calls.
z = torch.tensor([1 + 2j, 3 - 1j])
dense = torch.tensor([[0.0, 1.0, 0.0], [2.0, 0.0, 3.0]])
kinds = {
    "conj": z.conj(),
    "negated": torch._neg_view(torch.tensor([1.0, -2.0])),
    "plain": z,
    "coo": dense.to_sparse_coo(),
    "uncoalesced": torch.sparse_coo_tensor([[0, 0], [1, 1]], [1.0, 2.0], (2, 3)),
    "csr": dense.to_sparse_csr(),
    "csc": dense.to_sparse_csc(),
    "bsr": torch.eye(4).to_sparse_bsr((2, 2)),
    "complex": 1.5 - 2j,
    "bytearray": bytearray(b"\x00\xff"),
    "no_bytes": bytearray(),
    "layout": torch.sparse_csr,
    "set": {3},
    "float8_e4m3fnuz": torch.ones(2).to(torch.float8_e4m3fnuz),
}
tagged = torch.nn.Parameter(torch.full((2,), 7.0))
tagged.origin = "python"
kinds["with_attribute"] = tagged
torch.save(kinds, at("kinds.pt"))
torch.save(kinds, at("kinds_protocol4.pt"), pickle_protocol=4)

# The format from before 1.6: shared storages, a view of one, an empty one.
legacy = collections.OrderedDict(a=base, b=base[1], half=torch.arange(3).half(), none=torch.empty(0), conj=z.conj(),
                                 coo=dense.to_sparse_coo(), epoch=3)
torch.save(legacy, at("legacy.pt"), _use_new_zipfile_serialization=False)
torch.save(legacy, at("legacy_protocol4.pt"), _use_new_zipfile_serialization=False, pickle_protocol=4)

# What people keep beside their weights.
torch.save({"model": {"w": torch.arange(2.0)}, "args": argparse.Namespace(lr=0.1, path=pathlib.Path("/x")),
            "best": numpy.float64(0.5), "history": [1, numpy.int64(7)], "where": pathlib.Path("/x")},
           at("python_objects.pt"))
with open(at("trailing_bytes.pt"), "wb") as out:
    torch.save({"w": torch.arange(2.0)}, out)
    out.write(bytes(300))


def safetensors(name, header, data):
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(at(name), "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text + data)


safetensors("packed_types.safetensors",
            {"four": {"dtype": "F4", "shape": [2, 8], "data_offsets": [0, 8]},
             "six": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [8, 11]},
             "fnuz": {"dtype": "F8_E4M3FNUZ", "shape": [2], "data_offsets": [11, 13]}}, bytes(range(13)))
safetensors("metadata_null.safetensors",
            {"__metadata__": None, "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
            struct.pack("<2f", 1, 2))

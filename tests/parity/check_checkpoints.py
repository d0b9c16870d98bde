"""Reads what the checkpoint tests wrote, with Python's own packages: check_checkpoints.py FILE.safetensors FILE.pt."""
import json
import math
import sys

import torch
from safetensors import safe_open

with safe_open(sys.argv[1], framework="pt") as file:
    tensors = {name: file.get_tensor(name) for name in file.keys()}
    structure = json.loads(file.metadata()["fabric"])
assert torch.equal(tensors["model.weight"], torch.arange(6.0).reshape(2, 3)), tensors
assert torch.equal(tensors["model.half"], torch.ones(3, dtype=torch.bfloat16))
assert structure["tree"]["epoch"] == 3 and structure["tree"]["rate"] == 0.1, structure
assert structure["tree"]["model"]["weight"] == {"$tensor": "model.weight"}

values = torch.load(sys.argv[2], weights_only=True)
assert torch.equal(values["weight"], torch.arange(6.0).reshape(2, 3).t())
assert values["tied"][0].data_ptr() == values["tied"][1].data_ptr()
for name, tensor in values["types"].items():
    assert str(tensor.dtype) == "torch." + name, (name, tensor.dtype)
    assert torch.equal(tensor.to(torch.complex128), torch.tensor([0, 1, 1], dtype=torch.complex128)), (name, tensor)
assert values["numbers"][:4] == [1, -(2**63), 2**63 - 1, 0.1] and math.isnan(values["numbers"][4])
assert values["words"] == ["é 漢 😀", b"\xff\x00"] and values["none"] is None and values["yes"] is True
assert values["empty"].shape == (0, 3)

model = torch.nn.Linear(3, 2)
optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
model.load_state_dict(values["model"])
optimizer.load_state_dict(values["optimizer"])
assert optimizer.param_groups[0]["lr"] == 0.25 and optimizer.state[model.bias]["step"].item() == 2
optimizer.step()

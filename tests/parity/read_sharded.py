#!/usr/bin/env python3
"""read_sharded.py FOLDER: a second reader of sharded checkpoints (fabric/docs/formats.md), without the library.

Prints one line per tensor: name, type, shape and the sum of its elements' bytes. Every checksum that is there is compared.
"""
import functools, itertools, json, math, os, struct, sys

TABLE = [functools.reduce(lambda n, _: n >> 1 ^ (n & 1) * 0x82F63B78, range(8), n) for n in range(256)]
SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


def check(data, digits, what):
    crc = functools.reduce(lambda crc, byte: crc >> 8 ^ TABLE[crc & 255 ^ byte], data, 0xFFFFFFFF) ^ 0xFFFFFFFF
    assert f"{crc:08x}" == digits, f"{what} is damaged"


def check_sealed(text, mark, what):  # the digits of the sum that a text holds of itself count as zeros
    at = text.index(mark) + len(mark)
    check(text[:at] + b"0" * 8 + text[at + 8:], text[at:at + 8].decode(), what)


def open_shard(path):
    data = open(path, "rb").read()
    length, = struct.unpack("<Q", data[:8])
    text, data = data[8:8 + length], data[8 + length:]
    header = json.loads(text)
    metadata = header.pop("__metadata__")
    if sums := metadata.get("torchfabric.crc32c"):
        check_sealed(text, b'"torchfabric.crc32c":"', path)
        for i, name in enumerate(sorted(header, key=lambda name: header[name]["data_offsets"]), 1):
            check(data[slice(*header[name]["data_offsets"])], sums[8 * i:8 * i + 8], name)
    tensors = {name: (e["dtype"], e["shape"], data[slice(*e["data_offsets"])]) for name, e in header.items()}
    return tensors, json.loads(metadata["fabric"])["tree"]


def assemble(entry, shards):  # the whole tensor's bytes out of its boxes, row by row
    size, shape = SIZES.get(entry["dtype"], 1), entry["shape"]
    whole = bytearray(size * math.prod(shape))
    for number, offsets, box, *more in entry["chunks"]:
        digits, name = more[:1], (more[1:] or [entry["name"]])[0]
        dtype, stored, source = shards[number][0][name]
        assert (dtype, stored) == (entry["dtype"], box), entry["name"]
        if digits:
            check(source, digits[0], entry["name"])
        row = size * (box[-1] if box else 1)
        for i, place in enumerate(itertools.product(*map(range, box[:-1]))):
            at = functools.reduce(lambda at, d: at * d[0] + d[1] + d[2], zip(shape, offsets, [*place, 0]), 0)
            whole[at * size:at * size + row] = source[i * row:(i + 1) * row]
    return entry["dtype"], shape, bytes(whole)


def tensors_in(tree, tensors, path=""):  # (path, tensor) for each; "$map" and "$pairs" stand for maps with odd keys
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, item in items:
        if key in ("$tensor", "$complex") and len(tree) == 1:
            yield from [(path, tensors[item])] if item is not None else []
        else:
            deeper = path if key in ("$map", "$pairs") else f"{path}.{key}".strip(".")
            yield from tensors_in(item, tensors, deeper)


def read(folder):
    text = open(os.path.join(folder, "index.json"), "rb").read()
    index = json.loads(text)
    assert index["format"] == "torchfabric-sharded" and index["version"] in (1, 2, 3)
    if index["version"] > 1:
        check_sealed(text, b'"crc32c":"', "index.json")
    shards = [open_shard(os.path.join(folder, file["name"])) for file in index["files"]]
    assert all(tree["id"] == index["id"] for _, tree in shards)
    yield from tensors_in(index["tree"], {entry["name"]: assemble(entry, shards) for entry in index["tensors"]})
    for rank, (tensors, tree) in enumerate(shards):
        for key in index["per_rank"]:
            yield from tensors_in(tree["per_rank"][key], tensors, f"{key}.per_rank.{rank}")


if __name__ == "__main__":
    for name, (dtype, shape, data) in read(sys.argv[1]):
        print(name, dtype, shape, sum(data))

#!/usr/bin/env python3
"""read_sharded.py FOLDER: a second reader of sharded checkpoints (fabric/docs/formats.md), without the library.

Prints one line per tensor: name, type, shape and the sum of its elements' bytes. As a module, `read` returns the tree with
each tensor as (dtype, shape, bytes). Every checksum that is there is compared.
"""
import itertools
import json
import math
import os
import struct
import sys

TABLE = list(range(256))
for _ in range(8):
    TABLE = [n >> 1 ^ (n & 1) * 0x82F63B78 for n in TABLE]
SUMS = '"torchfabric.crc32c":"'
SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


def check(data, digits, what):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[crc & 255 ^ byte]
    assert f"{crc ^ 0xFFFFFFFF:08x}" == digits, f"{what} is damaged"


def check_sealed(text, mark, what):
    """A text that holds its own checksum, whose digits count as zeros."""
    at = text.index(mark.encode()) + len(mark)
    check(text[:at] + b"0" * 8 + text[at + 8:], text[at:at + 8].decode(), what)


def open_shard(path):
    with open(path, "rb") as file:
        data = file.read()
    (length,) = struct.unpack("<Q", data[:8])
    text, data = data[8:8 + length], data[8 + length:]
    header = json.loads(text)
    metadata = header.pop("__metadata__")
    if sums := metadata.get("torchfabric.crc32c"):
        check_sealed(text, SUMS, path)
        for i, name in enumerate(sorted(header, key=lambda name: header[name]["data_offsets"]), 1):
            check(data[slice(*header[name]["data_offsets"])], sums[8 * i:8 * i + 8], name)
    return header, data, json.loads(metadata["fabric"])["tree"]


def assemble(entry, shards):
    """The whole tensor's bytes out of its boxes, row by row."""
    size, shape = SIZES.get(entry["dtype"], 1), entry["shape"]
    whole = bytearray(size * math.prod(shape))
    for number, offsets, box, *digits in entry["chunks"]:
        header, data, _ = shards[number]
        stored = header[entry["name"]]
        assert stored["dtype"] == entry["dtype"] and stored["shape"] == box, entry["name"]
        source = data[slice(*stored["data_offsets"])]
        if digits:
            check(source, digits[0], entry["name"])
        row = size * (box[-1] if box else 1)
        for i, place in enumerate(itertools.product(*(range(n) for n in box[:-1]))):
            at = 0
            for extent, offset, index in zip(shape, offsets, list(place) + [0]):
                at = at * extent + offset + index
            whole[at * size:at * size + row] = source[i * row:(i + 1) * row]
    return entry["dtype"], shape, bytes(whole)


def fill(tree, tensors):
    if isinstance(tree, list):
        return [fill(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if len(tree) == 1:
        (key, value), = tree.items()
        if key in ("$tensor", "$complex"):
            return tensors[value] if value is not None else None
        if key == "$map":
            return {name: fill(item, tensors) for name, item in value.items()}
        if key == "$bytes":
            return bytes.fromhex(value)
        if key == "$pairs":
            return {str(fill(name, tensors)): fill(item, tensors) for name, item in value}
    return {name: fill(item, tensors) for name, item in tree.items()}


def read(folder):
    with open(os.path.join(folder, "index.json"), "rb") as file:
        text = file.read()
    index = json.loads(text)
    assert index["format"] == "torchfabric-sharded" and index["version"] in (1, 2)
    if index["version"] == 2:
        check_sealed(text, '"crc32c":"', "index.json")
    shards = [open_shard(os.path.join(folder, file["name"])) for file in index["files"]]
    assert all(structure["id"] == index["id"] for _, _, structure in shards)
    tree = fill(index["tree"], {entry["name"]: assemble(entry, shards) for entry in index["tensors"]})
    for key in index["per_rank"]:
        own = [fill(structure["per_rank"], {name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
                                            for name, entry in header.items()})[key]
               for header, data, structure in shards]
        tree[key] = own[0] if len(own) == 1 else {"per_rank": own}
    return tree


def lines(value, path=""):
    if isinstance(value, tuple):
        yield f"{path} {value[0]} {value[1]} {sum(value[2])}"
    elif isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from lines(item, f"{path}.{key}" if path else str(key))


if __name__ == "__main__":
    print("\n".join(lines(read(sys.argv[1]))))

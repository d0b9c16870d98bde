"""Writes the numbers that the tests of data order and seeds compare with.

Needs torch and lightning: python tests/parity/data_order.py > tests/parity/data_order.inc
"""
import torch
from lightning.fabric.utilities.seed import _generate_seed_sequence
from torch.utils.data import DataLoader, DistributedSampler


def shard(n, world, rank, epoch, seed, shuffle, drop_last=False):
    sampler = DistributedSampler(range(n), world, rank, shuffle=shuffle, seed=seed, drop_last=drop_last)
    sampler.set_epoch(epoch)
    return list(sampler)


def digest(indices):
    value = 0
    for index in indices:
        value = (value * 1000003 + index + 1) % 2**64
    return value


def braces(items):
    return "{" + ", ".join(str(item) for item in items) + "}"


def big(numbers):
    return [f"{number}ull" for number in numbers]


def table(declaration, rows):
    print(f"{declaration} = {{")
    for row in rows:
        print(f"    {row},")
    print("};")


def permutations():
    for seed in (0, 42, 4294967295 + 3):
        generator = torch.Generator()
        generator.manual_seed(seed)
        yield braces([f"{seed}ull", braces(torch.randperm(10, generator=generator).tolist())])


def shards():
    for n in (3, 10, 1797):
        for world in (1, 2, 3, 8):
            for epoch, seed in ((0, 0), (5, 1234)):
                for shuffle in (True, False):
                    for drop_last in (False, True):
                        indices = shard(n, world, world - 1, epoch, seed, shuffle, drop_last)
                        row = [n, world, world - 1, epoch, seed, int(shuffle), int(drop_last), len(indices)]
                        yield braces(row + big([digest(indices)]))


def batches():
    for batch_size in (1, 2, 3):
        for rank in (0, 1):
            sampler = DistributedSampler(range(11), 2, rank, shuffle=True, seed=7)
            loader = DataLoader(range(11), batch_size=batch_size, sampler=sampler)
            for epoch in (0, 1):
                sampler.set_epoch(epoch)
                rows = braces(braces(batch.tolist()) for batch in loader)
                yield braces([batch_size, rank, epoch, rows])


def seeds():
    for base, worker, rank in ((0, 0, 0), (0, 1, 0), (0, 0, 1), (42, 3, 7), (4294967295, 65535, 65535)):
        yield braces([f"{base}ull", worker, rank] + big(_generate_seed_sequence(base, worker, rank, 3)))


def numbers():
    torch.manual_seed(42)
    return [repr(number) for number in torch.rand(3, dtype=torch.float64).tolist()]


print(f"// Written by tests/parity/data_order.py with torch {torch.__version__.split('+')[0]}.")
table("const Permutation kPermutations[]", permutations())
table("const Shard kShards[]", shards())
table("const Batches kBatches[]", batches())
table("const Seeds kSeeds[]", seeds())
table("const double kRandomNumbers[]", numbers())

#!/usr/bin/env python3
"""large_model.py PROGRAM FABRIC: the whole story of examples/large_model.cpp, with a small model.

One process fails; two train, save and are killed; one with offload and three go on; Python reads the file of it.
"""
import json, os, re, signal, struct, subprocess, sys, tempfile, time

PROGRAM, FABRIC = sys.argv[1:3]
# Parameters, gradients and states are 39 MB.
MODEL = ["--model.width", "128", "--model.heads", "4", "--model.layers", "12", "--model.context", "16",
         "--limit_mb", "32", "--save_every", "4"]


def command(out, *options):
    return [PROGRAM, *MODEL, "--out", out, *options]


def run(out, *options):
    job = subprocess.run(command(out, *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    return job.returncode, job.stdout


def losses(text):
    return {int(step): float(loss) for step, loss in re.findall(r"step (\d+)  loss ([\d.e+-]+)", text)}


def succeed(out, *options):
    code, text = run(out, *options)
    assert code == 0, text
    return losses(text), text


def train_until_killed(out):
    job = subprocess.Popen(command(out, "--steps", "100000"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                           start_new_session=True)
    text, end = "", time.monotonic() + 120
    while "at step 8" not in text and time.monotonic() < end:
        text += job.stdout.readline()
    os.killpg(job.pid, signal.SIGKILL)
    text += job.stdout.read()
    job.wait(timeout=60)
    assert "at step 8" in text, text
    return losses(text)


def read(path):
    data = open(path, "rb").read()
    length, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    header.pop("__metadata__", None)
    end = max(e["data_offsets"][1] for e in header.values())
    assert end == len(data) - 8 - length, "the file is as long as its header says"
    first = header["model.head.weight"]
    numbers = struct.unpack("<128f", data[8 + length:][first["data_offsets"][0]:][:4 * 128])
    return header, numbers


def check_close(found, expected, what):
    assert found, what
    for step, loss in found.items():
        if step in expected:
            assert abs(loss - expected[step]) < 1e-3 * expected[step], (what, step, loss, expected[step])


with tempfile.TemporaryDirectory() as folder:
    one, job = f"{folder}/one", f"{folder}/job"
    code, text = run(one, "--steps", "2", "--fabric.devices", "1")
    assert code != 0 and "above its limit of 32 MB. Share the model out" in text, text

    expected, _ = succeed(one, "--steps", "20")  # two ranks, uninterrupted
    check_close(train_until_killed(job), expected, "the same job, killed")
    last = ["--resume", f"{job}/last"]
    _, text = run(job, "--steps", "12", "--fabric.devices", "1", *last)
    assert "above its limit" in text, text
    offloaded, text = succeed(job, "--steps", "12", "--fabric.devices", "1", "--fabric.strategy", "fsdp_cpu_offload", *last)
    began = int(re.search(r"resumed at step (\d+)", text)[1])
    assert began >= 8 and began % 4 == 0, text
    check_close(offloaded, expected, "one rank with offload")
    assert offloaded or began >= 12
    final, text = succeed(job, "--steps", "20", "--fabric.devices", "3", *last)
    check_close(final, expected, "three ranks")
    assert float(re.search(r"at most ([\d.]+) MB", text)[1]) < 32, text

    subprocess.run([FABRIC, "consolidate", f"{job}/last", f"{folder}/model.safetensors"], check=True, timeout=120)
    header, numbers = read(f"{folder}/model.safetensors")
    assert header["model.head.weight"]["shape"] == [128, 128] and header["model.blocks.11.up.weight"]["shape"] == [512, 128]
    assert any(numbers) and all(abs(number) < 10 for number in numbers)
    assert len([name for name in header if name.startswith("model.blocks.")]) == 12 * 12, sorted(header)

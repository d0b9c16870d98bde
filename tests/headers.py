#!/usr/bin/env python3
"""headers.py ROOT LIST [options]: are the public headers those that are listed, and does each compile alone?

LIST names the public headers, one path a line: what the rooms' CMakeLists.txt give to fabric_public_headers(). Every header
under fabric/ is in it or is private: its name ends in _internal.h or _test_support.h, or it lies in fabric/torch/. A comment
introduces each public class.

  --compile CXX        compiles each alone, and twice in one source; LibTorch's folders are given only to those that include
                       LibTorch. What passed before with the same text, compiler and LibTorch is not compiled again.
  --torch DIR          LibTorch's folder
  --stamps DIR         where it is remembered what passed, unless FABRIC_TEST_STAMPS says so
  --installed DIR      compares LIST with the headers under DIR
"""
import argparse
import concurrent.futures
import os
import re
import subprocess
import sys
import tempfile
import time

import stamps

PRIVATE = re.compile(r"(_internal|_test_support)\.h$|^fabric/torch/")


def headers_under(root, top):
    for folder, _, names in os.walk(os.path.join(root, top)):
        for name in sorted(names):
            if name.endswith(".h"):
                yield os.path.relpath(os.path.join(folder, name), root)


def list_problems(root, listed):
    there = set(headers_under(root, "fabric"))
    problems = [f"{path}: neither listed (fabric_public_headers() in its room's CMakeLists.txt) nor private (_internal.h)"
                for path in sorted(there - set(listed)) if not PRIVATE.search(path)]
    for path in sorted(set(listed)):
        if path not in there:
            problems.append(f"{path}: listed, but not there")
        elif PRIVATE.search(path):
            problems.append(f"{path}: listed as public, but its name says private")
    return problems


def comment_problems(root, listed):
    """Classes of the library's own namespace, other than those in `detail`, that no comment introduces."""
    problems = []
    for path in listed:
        with open(os.path.join(root, path), encoding="utf-8") as file:
            lines = file.read().split("\n")
        detail = False
        for number, line in enumerate(lines):
            if line.startswith("namespace"):
                detail = "detail" in line
            found = re.match(r"(?:class|struct|enum class) (?:FABRIC_API )?(\w+)[^;]*$", line)
            before = number - 1
            while before > 0 and lines[before].startswith(("template", "requires", "#pragma")):
                before -= 1
            if found and not detail and not lines[before].startswith("///"):
                problems.append(f"{path}:{number + 1}: {found[1]} has no comment")
    return problems


# Reading LibTorch takes seconds. A header is compiled behind the first of these that it leads to by itself, precompiled: so
# that nothing is there that it would not have brought along.
PRECOMPILED = [("torch/nn/module.h", "torch/optim/optimizer.h"), ("torch/optim/optimizer.h",), ("ATen/core/Tensor.h",)]


def compile_command(root, compiler, torch_includes):
    command = [*compiler, "-std=c++20", "-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers", "-I", root]
    for folder in torch_includes:
        command += ["-isystem", folder]
    return command


def precompile(command, includes, folder):
    """Makes a precompiled header in `folder`, which may be empty, and returns the options that use it."""
    header = os.path.join(folder, re.sub(r"\W", "_", includes[0]) + ".h")
    with open(header, "w", encoding="utf-8") as file:
        file.write("".join(f"#include <{include}>\n" for include in includes))
    done = subprocess.run([*command, "-x", "c++-header", header, "-o", header + ".gch"], capture_output=True, text=True)
    return ["-include", header, "-Winvalid-pch"] if done.returncode == 0 else []


def compile_alone(command, options, path, stamp):
    done = subprocess.run([*command, *options.result(), "-fsyntax-only", "-x", "c++", "-"], capture_output=True, text=True,
                          input=f"#include <{path}>\n#include <{path}>\n")
    if done.returncode:
        return f"{path} does not compile alone:\n{done.stderr}"
    stamps.Stamps.keep(stamp)
    return None


def stamped(root, listed, options, compiler):
    """(header, LibTorch's headers among those it leads to, the file that tells that it passed as it is)."""
    passed, known = stamps.Stamps(options.stamps, compiler, options.torch), {}
    passed.forget_old()
    for path in listed:
        texts, libtorch = stamps.closure(root, [path], known)
        yield path, libtorch, passed.of(path, sorted(texts.items()), PRECOMPILED, with_torch=bool(libtorch))


def compile_problems(root, listed, options):
    compiler, started = options.compile.split(), time.monotonic()
    os.makedirs(options.stamps, exist_ok=True)
    torch_includes = [os.path.join(options.torch, below) for below in ("include", "include/torch/csrc/api/include")]
    left = [entry for entry in stamped(root, listed, options, compiler) if not stamps.Stamps.has(entry[2])]
    with tempfile.TemporaryDirectory(dir=options.stamps) as folder, concurrent.futures.ThreadPoolExecutor(2) as pool:
        none = concurrent.futures.Future()
        none.set_result([])
        made, jobs = {}, []
        # Those that need no precompiled header come last, so that the others' are made meanwhile.
        for path, libtorch, stamp in sorted(left, key=lambda entry: not entry[1]):
            command = compile_command(root, compiler, torch_includes if libtorch else [])
            behind = next((group for group in PRECOMPILED if set(group) <= libtorch), None)
            if behind and behind not in made:
                made[behind] = pool.submit(precompile, command, behind, folder)
            jobs.append((command, made.get(behind, none), path, stamp))
        results = list(pool.map(lambda job: compile_alone(*job), jobs))
    print(f"{len(listed)} headers: {len(left)} compiled alone in {time.monotonic() - started:.0f} s, the others passed before")
    return [problem for problem in results if problem]


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("root")
    parser.add_argument("list")
    for name in ("compile", "torch", "stamps", "installed"):
        parser.add_argument("--" + name)
    options = parser.parse_args()
    with open(options.list, encoding="utf-8") as file:
        listed = file.read().split()
    problems = list_problems(options.root, listed) or comment_problems(options.root, listed)
    if options.installed:
        installed = set(headers_under(options.installed, "."))
        installed = {os.path.normpath(path) for path in installed}
        problems += [f"{path}: installed, but not listed" for path in sorted(installed - set(listed))]
        problems += [f"{path}: listed, but not installed" for path in sorted(set(listed) - installed)]
    if options.compile and not problems:
        problems += compile_problems(options.root, listed, options)
    print("\n".join(problems) if problems else f"{len(listed)} public headers are in order")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

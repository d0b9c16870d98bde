#!/usr/bin/env python3
"""layering.py ROOT [--draw | --check-page PAGE]: who may include whom, and who does.

A file's room follows from its path alone (ROOMS). A room sees itself and the rooms on the lines above its own (FLOORS),
never a neighbour on its line. Without an option every include is checked against these rules and the further ones of
`rules()`; --draw prints the arrows that the includes make; --check-page compares them with those that PAGE shows between
its two "arrows" marks.
"""
import collections
import os
import re
import sys

# The first pattern that matches a path names its room. The headers under fabric/ belong to the rooms of their sources.
ROOMS = [
    (r"fabric/(?:base/|version\.h|export\.h)", "base"),
    (r"fabric/config", "config"),
    (r"fabric/helpers", "helpers"),
    (r"fabric/launcher/|launcher/(?:start|worker)/", "launch"),
    (r"(?:fabric/)?launcher/(os|rendezvous)/", None),
    (r"launcher/", "run"),
    (r"(?:fabric/)?plugins/(\w+)/", None),
    (r"(?:fabric/)?(strategies|accelerators)/", None),
    (r"fabric/(state|optim|data|dispatch|torch|utilities)/", None),
    (r"fabric/", "facade"),
]
FLOORS = [
    "base",
    "config os torch",
    "state loggers",
    "optim data dispatch utilities environments checkpoint_io launch rendezvous accelerators",
    "run collectives precision",
    "strategies",
    "facade",
    "helpers",
]
FLOOR = {room: number for number, line in enumerate(FLOORS) for room in line.split()}
WITHOUT_LIBTORCH = "config os launch rendezvous run environments loggers".split()
# Third-party headers, and how many sources may include each.
THIRD_PARTY = [(r"CLI/", 2), (r"spdlog/", 1), (r"yaml-cpp/", 1), (r"mpi\.h", 3),
               (r"nccl\.h|torch/csrc/distributed/c10d/ProcessGroupNCCL", 2)]
# Headers of LibTorch whose classes are not made for others.
INSIDES = re.compile(r"torch/csrc/distributed/c10d/(reducer|logger|ProcessGroupGloo)\.hpp|gloo/")
# Tests, programs of tests and examples stand outside of the house.
OUTSIDE = re.compile(r"^(tests|examples)/|(_test|_test_support|_program)\.(cpp|h)$|^plugins/\w+/test_\w+\.h$")
# The reader itself, and who overwrites a variable where it lies.
GETENV = {"fabric/base/env_reader.cpp", "launcher/run/job_secret.cpp"}
INCLUDE = re.compile(r'^ *# *include +([<"])([^>"]+)[>"]')


def room_of(path):
    for pattern, room in ROOMS:
        match = re.match(pattern, path)
        if match:
            return room or match.group(1)
    return None


def sources(root):
    for top in ("fabric", "launcher", "strategies", "accelerators", "plugins"):
        for folder, _, names in os.walk(os.path.join(root, top)):
            for name in sorted(names):
                path = os.path.relpath(os.path.join(folder, name), root)
                if path.endswith((".h", ".cpp")) and not OUTSIDE.search(path):
                    yield path


def includes(root):
    for path in sources(root):
        with open(os.path.join(root, path), encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                match = INCLUDE.match(line)
                if match:
                    yield path, number, match.group(1), match.group(2)


def reason_against(path, quote, include, ours):
    """Why this include is forbidden, or None."""
    public = path.startswith("fabric/") and path.endswith(".h") and not path.endswith("_internal.h")
    room = room_of(path)
    if ours:
        other = room_of(include)
        if other != room and FLOOR[other] >= FLOOR[room]:
            return f"{room} does not see {other}"
        if room == "helpers" and other != room and include.endswith("_internal.h") and not include.startswith(
                ("fabric/base/", "fabric/config/", "fabric/state/", "fabric/optim/", "fabric/utilities/")):
            return "helpers see public headers only"
        if public and (not include.startswith("fabric/") or include.endswith("_internal.h")):
            return "a public header includes public headers only"
        return None
    if public and quote == '"':
        return "public headers are included as <fabric/...>"
    if public and not re.match(r"(ATen|c10|torch|sys)/|[a-z_0-9]+$|[a-z_]+\.h$", include):
        return "a public header includes the standard library, LibTorch and <fabric/...> only"
    if include == "torch/torch.h":
        return "the library names the single headers it needs"
    if room != "torch" and INSIDES.match(include):
        return "LibTorch's insides are for fabric/torch/ alone"
    if room in WITHOUT_LIBTORCH and re.match(r"(ATen|c10|torch)/", include):
        return f"{room} does without LibTorch"
    return None


def rules(root):
    problems, users = [], collections.defaultdict(set)
    for path, number, quote, include in includes(root):
        reason = reason_against(path, quote, include, os.path.exists(os.path.join(root, include)))
        if reason:
            problems.append(f"{path}:{number}: includes {include}: {reason}")
        for pattern, _ in THIRD_PARTY:
            if re.match(pattern, include):
                users[pattern].add(path)
    for pattern, limit in THIRD_PARTY:
        if len(users[pattern]) > limit:
            problems.append(f"{pattern} is included by {', '.join(sorted(users[pattern]))}: at most {limit}")
        problems += [f"{path}: no public header includes {pattern}" for path in users[pattern]
                     if path.startswith("fabric/") and path.endswith(".h")]
    for path in sources(root):
        if room_of(path) == "torch":
            continue
        with open(os.path.join(root, path), encoding="utf-8") as file:
            if re.search(r"TORCH_VERSION_(MINOR|MAJOR)", file.read()):
                problems.append(f"{path}: asks for LibTorch's version; ask for the feature, in fabric/torch/")
    for path in set(sources(root)) - GETENV:
        with open(os.path.join(root, path), encoding="utf-8") as file:
            if re.search(r"\bgetenv\(", file.read()):
                problems.append(f"{path}: reads the environment past the EnvReader")
    return problems + crowded(root)


def crowded(root):
    problems = []
    for folder, _, names in os.walk(root):
        path = os.path.relpath(folder, root)
        if not re.match(r"(build|\.git)(/|$)|.*corpus", path) and len(names) > 40:
            problems.append(f"{path}: holds {len(names)} files; a folder in which one finds one's way has at most 40")
    return problems


def arrows(root):
    seen = collections.defaultdict(set)
    for path, _, _, include in includes(root):
        if os.path.exists(os.path.join(root, include)) and room_of(include) != room_of(path):
            seen[room_of(path)].add(room_of(include))
    lines = []
    for line in FLOORS:
        for room in line.split():
            others = sorted(seen[room] - {"base", "config"}, key=lambda other: (FLOOR[other], other))
            lines.append(f"    {room:<13} → {', '.join(others) or '–'}")
    return "\n".join(lines) + "\n"


def main():
    root, options = sys.argv[1], sys.argv[2:]
    if options == ["--draw"]:
        print(arrows(root), end="")
        return 0
    if options[:1] == ["--check-page"]:
        with open(options[1], encoding="utf-8") as file:
            shown = re.search(r"<!-- arrows -->\n+(.*?)\n*<!-- /arrows -->", file.read(), re.S)
        if not shown or shown.group(1).rstrip() != arrows(root).rstrip():
            print(f"{options[1]}: the arrows it shows are not those that includes make; ./dev arrows prints them")
            return 1
        return 0
    found = rules(root)
    count = sum(1 for _ in sources(root))
    if count < 300:
        found.append(f"only {count} files found under '{root}': is it the project's root?")
    print("\n".join(found) if found else f"{count} files follow the layout")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""remove_waits.py ROOT [--list | --check-list | --run BUILD-FOLDER [NAME…]]

Is the loss of each wait between streams noticed? Every place of the library where a stream, or the host, waits for a device,
where an event is recorded, or where a stream is chosen stands in one of two tables: REMOVED says how it is taken away, OTHER why
that is no question. --check-list fails for a place that is in neither, and for a row without a place; it is a test.

--run takes each away in turn and expects the tests of the simulated device to fail. All removals are compiled at once, each behind a
switch that an environment variable throws, into the build that is there; the sources are put back when that is done, also after
an interruption (the next run, too, puts back what it finds).
"""
import argparse
import html
import os
import re
import shutil
import signal
import subprocess
import sys
import time

ROOMS = ("accelerators", "plugins", "strategies", "fabric")
# What orders streams, or the host after them.
PLACE = re.compile(
    r"\.record\(|\.block\(|[sS]ynchroni[sz]e\w*\(|StreamGuard\b|exchangeStream\(|[gs]et\w*Stream\w*\(|record_?[sS]tream|recordDataPtr"
    r"|\b(wait|wait_\w+|waitAndThrow)\(|getFuture\(|->then\(|markCompleted\(|\border\(|non_blocking=\*/(?!false)")
SWITCH = "TORCHFABRIC_WITHOUT"

# (name, file, the text that is replaced, once in the file; the replacement, where WITHOUT is the switch)
REMOVED = [
    ("event of order", "accelerators/torch_device.cpp", "event.record(earlier);", "if (!WITHOUT) event.record(earlier);"),
    ("wait of order", "accelerators/torch_device.cpp", "event.block(later);", "if (!WITHOUT) event.block(later);"),
    ("side stream, begin", "accelerators/torch_device.cpp", "order(outer, inner);", "if (!WITHOUT) order(outer, inner);"),
    ("side stream, end", "accelerators/torch_device.cpp", "order(inner, outer);", "if (!WITHOUT) order(inner, outer);"),
    ("side stream, its use", "accelerators/torch_device.cpp", "guard.exchangeStream(inner);",
     "if (!WITHOUT) guard.exchangeStream(inner);"),
    ("side stream, the way back", "accelerators/torch_device.cpp", "guard.exchangeStream(outer);",
     "if (!WITHOUT) guard.exchangeStream(outer);"),
    ("synchronize of a device", "accelerators/torch_device.cpp",
     "c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(",
     "if (!WITHOUT) c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice("),
    ("synchronize of the accelerator", "accelerators/torch_accelerator.cpp", "{ torch_device::synchronize(",
     "{ if (!WITHOUT) torch_device::synchronize("),
    ("synchronize of cuda", "accelerators/cuda/cuda.cpp", "{ runtime().synchronize(index_of(device)); }",
     "{ if (!WITHOUT) runtime().synchronize(index_of(device)); }"),
    ("first use of cuda", "accelerators/cuda/cuda.cpp", "runtime().synchronize(device);",
     "if (!WITHOUT) runtime().synchronize(device);"),
    ("snapshot, the stream", "plugins/checkpoint_io/async/host_snapshot.cpp", "guard.getStream(device).synchronize();",
     "if (!WITHOUT) guard.getStream(device).synchronize();"),
    ("snapshot, each device", "plugins/checkpoint_io/async/host_snapshot.cpp",
     "for (auto device : devices) wait_for(device);", "for (auto device : devices) if (!WITHOUT) wait_for(device);"),
    ("dp, streams of the threads", "strategies/dp/dp.cpp", "guard(streams[i]);",
     "guard(WITHOUT ? std::optional<c10::Stream>() : streams[i]);"),
    ("dp, copies to the host", "strategies/dp/dp.cpp", "non_blocking=*/!device.is_cpu()", "non_blocking=*/WITHOUT || !device.is_cpu()"),
    ("strategy, copies to the host", "strategies/strategy.cpp", "non_blocking=*/!target.is_cpu()",
     "non_blocking=*/WITHOUT || !target.is_cpu()"),
    ("data, copies to the host", "fabric/data/loader_core.cpp", "non_blocking=*/!device.is_cpu()",
     "non_blocking=*/WITHOUT || !device.is_cpu()"),
    ("group, work on a device", "plugins/collectives/group.cpp", "    work.wait();\n    return;",
     "    if (!WITHOUT) work.wait();\n    return;"),
    ("group, every operation", "plugins/collectives/group.h", "if (auto work = start()) wait(*work, operation, bytes, begin);",
     "if (auto work = start(); work && !WITHOUT) wait(*work, operation, bytes, begin);"),
    ("group, between two ranks", "plugins/collectives/group.h", "if (auto work = start()) work->wait();",
     "if (auto work = start(); work && !WITHOUT) work->wait();"),
    ("work of the caller's", "plugins/collectives/process_group.cpp", "run(operation, [&] { return work; });",
     "run(operation, [&] { return WITHOUT ? c10::intrusive_ptr<c10d::Work>() : work; });"),
    ("hook, average", "strategies/ddp/bucket_hooks.cpp", "return work->getFuture()->then(",
     "return (WITHOUT ? completed(tensors[0]) : work->getFuture())->then("),
    ("hook, cast", "strategies/ddp/bucket_hooks.cpp", "return inner_->run(bucket)->then(",
     "auto inner = inner_->run(bucket);\n  if (WITHOUT) inner = completed(cast);\n  return inner->then("),
    ("hook, completed", "strategies/ddp/bucket_hooks.cpp", "  future->markCompleted(tensor);",
     "  if (WITHOUT) {\n    c10::StreamGuard elsewhere(c10::impl::VirtualGuardImpl(tensor.device().type())"
     ".getStreamFromGlobalPool(tensor.device()));\n    future->markCompleted(tensor);\n  } else future->markCompleted(tensor);"),
    ("hook, powersgd", "strategies/ddp/powersgd_hook.cpp", "group_->allreduce(tensors)->wait();",
     "auto work = group_->allreduce(tensors);\n  if (!WITHOUT) work->wait();"),
    ("ddp, buffers", "strategies/ddp/replica_sync.cpp",
     'group_.wait_for("broadcast of buffers", group_.c10d()->broadcast(tensors, options));',
     'auto work = group_.c10d()->broadcast(tensors, options);\n'
     '    if (!WITHOUT) group_.wait_for("broadcast of buffers", work);'),
    ("join, a bucket", "strategies/ddp/ddp_join.cpp",
     "hooks_[static_cast<std::size_t>(event.module)]->run(bucket)->waitAndThrow();",
     "auto done = hooks_[static_cast<std::size_t>(event.module)]->run(bucket);\n  if (!WITHOUT) done->waitAndThrow();"),
    ("sharded, every operation", "strategies/sharded/collective.h", "group.wait_for(name, work);",
     "if (!WITHOUT) group.wait_for(name, work);"),
    ("sharded, gather", "strategies/sharded/gather.cpp", "gathering.works.wait();", "if (!WITHOUT) gathering.works.wait();"),
    ("sharded, reduction", "strategies/sharded/reduce.cpp", "  reduction.works.wait();\n  if",
     "  if (!WITHOUT) reduction.works.wait();\n  if"),
    ("sharded, over the copies", "strategies/sharded/reduce.cpp", "    reduction.works.wait();\n  }",
     "    if (!WITHOUT) reduction.works.wait();\n  }"),
]

# (pattern of "file: line", why it is not removed)
HOST = "threads, processes or sockets of the host: the thread sanitizer and the tests of that room"
CPU = "an operation of the CPU's, which has no streams"
OTHER = [
    (r"\.h: .*\b(wait|synchronize|order)\(.*\) override( \{\}|;)$", "a declaration"),
    (r"^accelerators/torch_device\.h: ", "a declaration"),
    (r"^accelerators/torch_device\.cpp: (void order\(|void synchronize\(c10::Device device\) \{$)", "a definition's head"),
    (r"^accelerators/torch_device\.cpp: auto (outer|inner) = guard\.getStream", "asks which stream"),
    (r"^accelerators/cuda/cuda_runtime\.cpp: ", "runs on CUDA alone: rows accelerator and streams of ./dev gpu-check"),
    (r"^(fabric/accelerators/accelerator|accelerators/cuda/cuda_runtime)\.h: ", "a declaration"),
    (r"^plugins/checkpoint_io/async/host_snapshot\.cpp: (void wait_for|to\.copy_)", "a head; a copy that waits for nobody"),
    (r"^strategies/dp/dp\.cpp: (if \(!devices_\[i\]\.is_cpu\(\)\) streams|forward\.for_each_input)", "asks which; goes to a device"),
    (r"^plugins/collectives/group\.cpp: (bool wait_at_most|work\.wait\(time\)|work\.wait\(\);  //|if \(wait_at_most|"
     r"\} while \(!wait_at_most|torch::autograd|void |for \(const auto& work : works\))", CPU),
    (r"^plugins/collectives/group\.h: void wait", "a declaration"),
    (r"^(fabric/)?plugins/collectives/process_group\.(cpp|h): void (ProcessGroup::)?wait_for", "a declaration"),
    (r"^plugins/collectives/backend\.cpp: ", CPU),
    (r"^plugins/collectives/(shm|mpi|communicator|gloo)/", CPU),
    (r"^strategies/sharded/collective\.h: void wait", "a head"),
    (r"^(fabric/)?plugins/(checkpoint_io/async|collectives/(store|waits|health|watchdog|join)|loggers)", HOST),
    (r"^fabric/plugins/checkpoint_io/", HOST),
    (r"^(fabric/)?strategies/checkpointing\.(cpp|h): ", HOST),
    (r"^fabric/(data/(iteration\.h|worker_pool\.(cpp|h))|helpers/|base/|utilities/|state/|torch/)", HOST),
]


def sources(root):
    for room in ROOMS:
        for folder, _, names in os.walk(os.path.join(root, room)):
            for name in sorted(names):
                if re.search(r"(?<!_test)(?<!_test_support)\.(cpp|h)$", name):
                    yield os.path.relpath(os.path.join(folder, name), root)


def read(root, path):
    with open(os.path.join(root, path), encoding="utf-8") as file:
        return file.read()


def places(root):
    """(path, number, line) of every line that may be a wait; comments and includes are none."""
    for path in sources(root):
        for number, line in enumerate(read(root, path).split("\n"), 1):
            line = line.strip()
            code = re.sub(r"^(//|#).*|(?<=\s)// .*", "", line)
            if PLACE.search(code):
                yield path, number, line


def list_problems(root, removed=None, other=None):
    """Places in no table, and rows without a place."""
    removed = REMOVED if removed is None else removed
    other = OTHER if other is None else other
    problems, used = [], set()
    texts = {}
    for name, path, text, _ in removed:
        texts.setdefault(path, []).append(text)
        count = read(root, path).count(text) if os.path.exists(os.path.join(root, path)) else 0
        if count != 1:
            problems.append(f"{path}: '{text.strip()}' of the removal '{name}' is there {count} times")
    for path, number, line in places(root):
        if any(line in text or text.strip().split("\n")[0] in line for text in texts.get(path, [])):
            continue
        rows = [pattern for pattern, _ in other if re.search(pattern, f"{path}: {line}")]
        used.update(rows)
        if not rows:
            problems.append(f"{path}:{number}: may be a wait, and stands in no table of tests/sim/remove_waits.py: {line}")
    problems += [f"no place in the sources is meant by the row {pattern}" for pattern, _ in other if pattern not in used]
    return problems


# --- the run

HEADERS = "#include <cstdlib>\n#include <cstring>\n#include <optional>\n#include <c10/core/StreamGuard.h>\n" \
          "#include <c10/core/impl/VirtualGuardImpl.h>\n"


def switch(number):
    return f'([] {{ const char* w = std::getenv("{SWITCH}"); return w && std::atoi(w) == {number + 1}; }}())'


class Patched:
    """The sources with all removals in them, until it is left."""

    def __init__(self, root, folder, removed=None):
        self.removed = REMOVED if removed is None else removed
        self.root, self.kept = root, os.path.join(root, folder, "remove_waits")

    def restore(self):
        for folder, _, names in os.walk(self.kept):
            for name in names:
                path = os.path.join(folder, name)
                shutil.copyfile(path, os.path.join(self.root, os.path.relpath(path, self.kept)))
        shutil.rmtree(self.kept, ignore_errors=True)

    def __enter__(self):
        self.restore()
        texts = {}
        for number, (_, path, text, replacement) in enumerate(self.removed):
            texts.setdefault(path, read(self.root, path))
            texts[path] = texts[path].replace(text, replacement.replace("WITHOUT", switch(number)))
        for path in texts:
            os.makedirs(os.path.dirname(os.path.join(self.kept, path)), exist_ok=True)
            shutil.copyfile(os.path.join(self.root, path), os.path.join(self.kept, path))
        for path, text in texts.items():
            with open(os.path.join(self.root, path), "w", encoding="utf-8") as file:
                file.write(HEADERS + text)
        return self

    def __exit__(self, *_):
        self.restore()


def run_tests(programs, number):
    """The names of the test cases that failed; what else ended a program counts, too."""
    failed = []
    environment = dict(os.environ, FABRIC_LOG_LEVEL="error", **{SWITCH: str(number + 1)})
    for program in programs:
        try:
            done = subprocess.run([program, "-r", "junit"], env=environment, timeout=300, capture_output=True, text=True,
                                  errors="replace")
        except subprocess.TimeoutExpired:
            return ["the tests hang"]
        if done.returncode != 0:
            cases = re.findall(r'<testcase [^>]*name="([^"]*)"[^>]*>\s*<(?:failure|error)', done.stdout)
            failed += [html.unescape(case) for case in cases] or [f"{os.path.basename(program)} ended with {done.returncode}"]
    return sorted(set(failed))


def run(root, folder, names):
    programs = {"fabric_test_sim": "tests/sim/fabric_test_sim",
                "fabric_test_accelerators": "accelerators/fabric_test_accelerators"}
    wanted = [(number, row[0]) for number, row in enumerate(REMOVED) if not names or any(n in row[0] for n in names)]
    with Patched(root, folder):
        subprocess.run(["cmake", "--build", os.path.join(root, folder), "-j", os.environ.get("DEV_JOBS", str(os.cpu_count())),
                        "--target", *programs], check=True)
    paths = [os.path.join(root, folder, path) for path in programs.values()]
    if run_tests(paths, -1):
        sys.exit("the tests fail as it is")
    unnoticed = 0
    for number, name in wanted:
        begin = time.monotonic()
        failed = run_tests(paths, number)
        unnoticed += not failed
        print(f"{name:34} {'NOT NOTICED' if not failed else 'noticed by ' + '; '.join(failed)}  [{time.monotonic() - begin:.0f} s]",
              flush=True)
    print(f"{len(wanted) - unnoticed} of {len(wanted)} removals are noticed")
    return unnoticed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("names", nargs="*", help="parts of names of removals")
    parser.add_argument("--list", action="store_true", help="print every place and what is done with it")
    parser.add_argument("--check-list", action="store_true", help="only look whether the tables are complete")
    parser.add_argument("--run", metavar="BUILD-FOLDER", help="relative to ROOT")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    problems = list_problems(options.root)
    if options.list:
        for name, path, text, _ in REMOVED:
            print(f"removed   {path}: {text.strip().splitlines()[0]}  ({name})")
        for path, number, line in places(options.root):
            for pattern, reason in OTHER:
                if re.search(pattern, f"{path}: {line}"):
                    print(f"left      {path}:{number}: {line}  ({reason})")
                    break
    for problem in problems:
        print(problem)
    if problems:
        sys.exit(1)
    if options.run and run(options.root, options.run, options.names):
        sys.exit(1)


if __name__ == "__main__":
    main()

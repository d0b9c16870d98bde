#!/usr/bin/env python3
"""compile_check.py ROOT --compile CXX --flags FILE --torch DIR --out DIR [--pages PAGE…] SOURCE: what the compiler says.

Lines of SOURCE such as
    // says: "a sentence"
are what the compiler's errors must hold; a file without such a line must compile. --pages: the C++ samples of these pages
of the documentation are compiled behind SOURCE, all in one file.
"""
import argparse
import os
import re
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import stamps  # noqa: E402

SENTENCE = re.compile(r'// says: "(.*)"')
SAMPLE = re.compile(r"^```cpp\n(.*?)^```", re.M | re.S)


def source_text(path, pages):
    samples = [sample for page in pages for sample in SAMPLE.findall(stamps.read(page))]
    return "\n".join([stamps.read(path), *samples])


def problems(text, code, said):
    sentences = SENTENCE.findall(text)
    if not sentences:
        return [f"it does not compile:\n{said}"] if code else []
    if code == 0:
        return ["it compiles, although it is full of mistakes"]
    missing = [f"the compiler does not say: {sentence}" for sentence in sentences if sentence not in said]
    return missing + [said] if missing else []


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("root")
    parser.add_argument("source")
    for name in ("compile", "flags", "torch", "out"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--pages", nargs="*", default=[])
    options = parser.parse_args()
    text = source_text(options.source, options.pages)
    if options.pages and not any(SAMPLE.search(stamps.read(page)) for page in options.pages):
        return f"there is no sample of C++ in {' '.join(options.pages)}"
    compiler = options.compile.split()
    passed = stamps.Stamps(os.path.join(options.out, "passed"), compiler, options.torch)
    texts, _ = stamps.closure(options.root, stamps.INCLUDE.findall(text))
    stamp = passed.of(text, stamps.read(options.flags), sorted(texts.items()), stamps.read(__file__))
    if passed.has(stamp):
        print(f"{options.source}: passed before")
        return 0
    written = os.path.join(options.out, os.path.basename(options.source))
    with open(written, "w", encoding="utf-8") as file:
        file.write(text)
    done = subprocess.run([*compiler, "@" + options.flags, "-fsyntax-only", written], capture_output=True, text=True,
                          env={**os.environ, "LC_ALL": "C.UTF-8"})
    found = problems(text, done.returncode, done.stderr)
    if not found:
        passed.keep(stamp)
    return "\n".join([f"{options.source}:", *found]) if found else 0


if __name__ == "__main__":
    sys.exit(main())

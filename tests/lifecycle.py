#!/usr/bin/env python3
"""lifecycle.py ROOT: is no deprecation overdue, and is all that is experimental said to be so?

What is deprecated since X is gone in the second minor version after X, and in the next major one (fabric/base/lifecycle.h).
Each FABRIC_DEPRECATED has a FABRIC_WARN_DEPRECATED of the same words. What a header marks `@experimental` says so at run time
(FABRIC_WARN_EXPERIMENTAL) and stands in the table of fabric/docs/versioning.md, and nothing else stands there.
"""
import os
import re
import sys

TOPS = ("fabric", "launcher", "strategies", "accelerators", "plugins")
TEXT = r'"((?:[^"\\]|\\.)*)"'
DECLARED = re.compile(rf"\bFABRIC_DEPRECATED\(\s*{TEXT}\s*,\s*{TEXT}\s*\)")
WARNED = re.compile(rf"\bFABRIC_WARN_DEPRECATED\(\s*{TEXT}\s*,\s*{TEXT}\s*,\s*{TEXT}\s*\)")
INSIDE = r'(?:"(?:[^"\\]|\\.)*"|[^()"])*'
FIELDS = re.compile(rf"\bFABRIC_(RENAMED|DEPRECATED_FIELDS)\(\s*\w+\s*,((?:{INSIDE}|\({INSIDE}\))*?)\)\s*$", re.M)
MARKED = re.compile(r"///[^\n]*@experimental[^\n]*\n(?:\s*///[^\n]*\n)*\s*(?:template <[^\n]*>\n\s*)?"
                    r"(?:class|struct|enum class)?\s*(?:FABRIC_API\s+)?(?:[\w:<>&*]+\s+)*?(\w+)\s*(?:[:({;]|final)")
WARNED_EXPERIMENTAL = re.compile(rf"\bFABRIC_WARN_EXPERIMENTAL\(\s*{TEXT}\s*\)")
TABLE = re.compile(r"<!-- experimental -->\n(.*?)<!-- /experimental -->", re.S)


def number(version):
    return tuple(int(part) for part in version.split(".")[:2])


def overdue(since, now):
    (major, minor), (major_now, minor_now) = number(since), number(now)
    return major_now > major or minor_now >= minor + 2


def sources(root):
    for top in TOPS:
        for folder, _, names in os.walk(os.path.join(root, top)):
            for name in sorted(names):
                path = os.path.relpath(os.path.join(folder, name), root)
                if name.endswith((".h", ".cpp")) and not re.search(r"_test(_support)?\.(cpp|h)$", path):
                    with open(os.path.join(root, path), encoding="utf-8") as file:
                        text = file.read()
                    # Neither the macros themselves nor the examples in their comments.
                    if not path.endswith(("base/lifecycle.h", "fabric/config.h")):
                        yield path, text


def deprecations(path, text):
    """(line, what, since) of each."""
    for found in DECLARED.finditer(text):
        yield text.count("\n", 0, found.start()) + 1, found[2], found[1]
    for found in WARNED.finditer(text):
        yield text.count("\n", 0, found.start()) + 1, found[1], found[2]
    for found in FIELDS.finditer(text):
        for entry in re.findall(rf"\(\s*(\w+)\s*,[^()\"]*{TEXT}", found[2]):
            yield text.count("\n", 0, found.start()) + 1, entry[0], entry[1]


def problems(files, now, page):
    found, declared, warned, marked, said = [], [], set(), {}, set()
    for path, text in files:
        for line, what, since in deprecations(path, text):
            if not re.fullmatch(r"\d+\.\d+", since):
                found.append(f"{path}:{line}: '{what}' is deprecated since '{since}', which is no version MAJOR.MINOR")
            elif overdue(since, now):
                found.append(f"{path}:{line}: '{what}' is deprecated since {since} and overdue in {now}: remove it")
            elif number(since) > number(now):
                found.append(f"{path}:{line}: '{what}' is deprecated since {since}, which is still to come after {now}")
        declared += [(path, entry[1], entry[2]) for entry in DECLARED.finditer(text)]
        warned |= {(entry[2], entry[3]) for entry in WARNED.finditer(text)}
        marked.update({entry[1]: path for entry in MARKED.finditer(text)})
        said |= set(WARNED_EXPERIMENTAL.findall(text))
    found += [f"{path}: FABRIC_DEPRECATED(\"{since}\", \"{advice}\") has no FABRIC_WARN_DEPRECATED of the same words"
              for path, since, advice in declared if (since, advice) not in warned]
    table = TABLE.search(page)
    listed = set(re.findall(r"^\| `(\w+)`", table[1], re.M)) if table else set()
    for name, path in sorted(marked.items()):
        if name not in said:
            found.append(f"{path}: {name} is @experimental and has no FABRIC_WARN_EXPERIMENTAL(\"{name}\")")
        if name not in listed:
            found.append(f"{path}: {name} is @experimental and not in the table of fabric/docs/versioning.md")
    found += [f"fabric/docs/versioning.md: lists {name}, which no header marks @experimental"
              for name in sorted(listed - set(marked))]
    return found


def main():
    root = sys.argv[1]
    with open(os.path.join(root, "fabric/version.h"), encoding="utf-8") as file:
        now = re.search(r'FABRIC_VERSION "([^"]+)"', file.read())[1]
    with open(os.path.join(root, "fabric/docs/versioning.md"), encoding="utf-8") as file:
        page = file.read()
    found = problems(list(sources(root)), sys.argv[2] if len(sys.argv) > 2 else now, page)
    print("\n".join(found) if found else f"nothing is overdue in {now}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

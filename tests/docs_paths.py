#!/usr/bin/env python3
"""docs_paths.py ROOT: does what the documentation names exist?

In every page: the headers of #include lines (they must be public), paths of the repository in backticks, relative links with
their headings, and commands of ./dev. NAME in a path stands for any. Text between <!-- reserved --> and <!-- /reserved --> names what is to come.
"""
import os
import re
import sys

PAGES = re.compile(r"^(fabric/docs/.*\.md|[A-Z]+\.md|\.github/.*\.md|(tests|examples)/.*\.md)$")
HISTORY = {"CHANGELOG.md"}  # says what was once where
TOPS = "fabric|launcher|strategies|accelerators|plugins|tests|examples|\\.ci|\\.github"
PATH = re.compile(rf"`((?:{TOPS})/[\w./*-]*)(?::\d+(?:-\d+)?)?`")
PRIVATE = re.compile(r"(_internal|_test_support)\.h$|^fabric/torch/")


def pages(root):
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in ("build", ".git", "out")]
        for name in sorted(names):
            path = os.path.normpath(os.path.relpath(os.path.join(folder, name), root))
            if PAGES.match(path) and path not in HISTORY:
                yield path


def exists(root, path):
    if "*" not in path:
        return os.path.exists(os.path.join(root, path))
    folder, pattern = os.path.split(path)
    folder = os.path.join(root, folder)
    name = re.compile(re.escape(pattern).replace(r"\*", ".*"))
    return os.path.isdir(folder) and any(name.fullmatch(entry) for entry in os.listdir(folder))


def anchors(root, path):
    with open(os.path.join(root, path), encoding="utf-8") as file:
        titles = re.findall(r"^#+ (.*)$", file.read(), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def link_problem(root, page, link):
    if re.match(r"[a-z]+:", link):
        return None
    target, _, anchor = link.partition("#")
    path = os.path.normpath(os.path.join(os.path.dirname(page), target)) if target else page
    if not os.path.exists(os.path.join(root, path)):
        return f"links to {link}, which is not there"
    if anchor and path.endswith(".md") and anchor not in anchors(root, path):
        return f"links to {link}, and {path} has no such heading"
    return None


def page_problems(root, page, commands):
    with open(os.path.join(root, page), encoding="utf-8") as file:
        text = re.sub(r"<!-- reserved -->.*?<!-- /reserved -->", lambda found: "\n" * found[0].count("\n"), file.read(),
                      flags=re.S)
    problems = []
    for number, line in enumerate(text.split("\n"), 1):
        def say(what):
            problems.append(f"{page}:{number}: {what}")
        for header in re.findall(r'# *include +[<"](fabric/[^>"]+)[>"]', line):
            if not os.path.exists(os.path.join(root, header)):
                say(f"includes {header}, which is not there")
            elif PRIVATE.search(header):
                say(f"includes {header}, which is private")
        for path in PATH.findall(line):
            if "NAME" not in path and not exists(root, path):
                say(f"names {path}, which is not there")
        for link in re.findall(r"\]\(([^)\s]+)\)", line):
            problem = link_problem(root, page, link)
            if problem:
                say(problem)
        for command in re.findall(r"\./dev ([a-z][a-z-]+)", line):
            if command not in commands:
                say(f"names ./dev {command}, which is no command")
    return problems


def main():
    root = sys.argv[1]
    with open(os.path.join(root, "dev"), encoding="utf-8") as file:
        commands = set(re.findall(r"^    ([a-z-]+)\) (?:echo|cat)", file.read(), re.M)) | {"help"}
    found = list(pages(root))
    problems = [problem for page in found for problem in page_problems(root, page, commands)]
    if len(found) < 15:
        problems.append(f"only {len(found)} pages found under '{root}': is it the project's root?")
    print("\n".join(problems) if problems else f"{len(found)} pages name nothing that is not there")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

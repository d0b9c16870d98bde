#!/usr/bin/env python3
"""Do the checks of the project find what they are for? Each gets a small tree with one fault in it."""
import contextlib
import io
import os
import re
import sys
import tempfile
import unittest

for below in ("compile", "sim", ""):
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), below))
import compile_check  # noqa: E402
import docs_paths  # noqa: E402
import headers  # noqa: E402
import lifecycle  # noqa: E402
import remove_waits  # noqa: E402
import stamps  # noqa: E402


class Tree(unittest.TestCase):
    def setUp(self):
        os.environ.pop("FABRIC_TEST_STAMPS", None)  # nothing of other trees counts here
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.root = self.folder.name

    def write(self, path, text=""):
        os.makedirs(os.path.dirname(os.path.join(self.root, path)), exist_ok=True)
        with open(os.path.join(self.root, path), "w", encoding="utf-8") as file:
            file.write(text)


class Headers(Tree):
    def test_each_is_listed_or_private(self):
        for path in ("fabric/a.h", "fabric/b_internal.h", "fabric/c_test_support.h", "fabric/torch/gloo/d.h", "fabric/e.h"):
            self.write(path)
        self.assertEqual(headers.list_problems(self.root, ["fabric/a.h", "fabric/e.h"]), [])
        self.assertIn("fabric/e.h: neither listed", headers.list_problems(self.root, ["fabric/a.h"])[0])
        self.assertIn("not there", headers.list_problems(self.root, ["fabric/a.h", "fabric/e.h", "fabric/f.h"])[0])
        self.assertIn("private", headers.list_problems(self.root, ["fabric/a.h", "fabric/e.h", "fabric/b_internal.h"])[0])

    def test_each_compiles_alone(self):
        self.write("fabric/whole.h", "#pragma once\n#include <string>\ninline std::string whole() { return {}; }\n")
        self.write("fabric/leans.h", "#pragma once\ninline std::string leans() { return {}; }\n")
        self.write("fabric/twice.h", "inline int twice() { return 0; }\n")
        options = type("Options", (), {"compile": os.environ.get("CXX", "c++"), "torch": "/none",
                                       "stamps": os.path.join(self.root, "stamps")})
        for path, good in (("fabric/whole.h", True), ("fabric/leans.h", False), ("fabric/twice.h", False)):
            with contextlib.redirect_stdout(io.StringIO()) as said:
                self.assertEqual(headers.compile_problems(self.root, [path], options) == [], good, path)
            self.assertIn("1 compiled alone", said.getvalue())
        with contextlib.redirect_stdout(io.StringIO()) as said:
            self.assertEqual(headers.compile_problems(self.root, ["fabric/whole.h"], options), [])
        self.assertIn(" 0 compiled alone", said.getvalue())

    def test_a_stamp_is_that_of_all_that_a_header_leads_to(self):
        self.write("fabric/a.h", "#include <fabric/b.h>\n")
        self.write("fabric/b.h", "#include <string>\n#include <torch/types.h>\n")
        compiler = os.environ.get("CXX", "c++").split()

        def stamp(torch="/none"):
            texts, libtorch = stamps.closure(self.root, ["fabric/a.h"])
            self.assertEqual(libtorch, {"torch/types.h"})
            return stamps.Stamps(os.path.join(self.root, "stamps"), compiler, torch).of(sorted(texts.items()))

        before = stamp()
        self.assertEqual(before, stamp())
        self.assertNotEqual(before, stamp("/other"))
        self.write("fabric/b.h", "#include <torch/types.h>\n")
        self.assertNotEqual(before, stamp())

    def test_old_stamps_go(self):
        passed = stamps.Stamps(os.path.join(self.root, "stamps"), os.environ.get("CXX", "c++").split())
        old, new, asked = passed.of("old"), passed.of("new"), passed.of("asked")
        for path in (old, new, asked):
            self.assertFalse(passed.has(path))
            passed.keep(path)
        for path in (old, asked):
            os.utime(path, (0, 0))
        self.assertTrue(passed.has(asked))
        passed.forget_old()
        self.assertEqual([os.path.exists(path) for path in (old, new, asked)], [False, True, True])

    def test_public_classes_have_a_comment(self):
        self.write("fabric/a.h", "namespace fabric {\nclass Later;\n/// Does it.\nclass FABRIC_API Good {\n};\n"
                                 "struct FABRIC_API Bad {\n  struct Config {\n  };\n};\nnamespace detail {\nstruct Own {\n};\n}\n}\n")
        self.assertEqual(headers.comment_problems(self.root, ["fabric/a.h"]), ["fabric/a.h:6: Bad has no comment"])


class CompileCheck(Tree):
    def test_sentences(self):
        mistake = '// says: "write x"\n'
        self.assertEqual(compile_check.problems(mistake, 1, "error: write x"), [])
        self.assertIn("does not say: write x", compile_check.problems(mistake, 1, "error: write y")[0])
        self.assertIn("compiles, although", compile_check.problems(mistake, 0, "")[0])
        self.assertEqual(compile_check.problems("int x;\n", 0, ""), [])
        self.assertIn("does not compile", compile_check.problems("int x\n", 1, "expected ;")[0])

    def test_samples_stand_behind_the_source(self):
        self.write("source.cpp", "int before;\n")
        self.write("page.md", "Text\n```cpp\nint one;\n```\n```sh\nls\n```\n```cpp\nint two;\nint three;\n```\n")
        text = compile_check.source_text(os.path.join(self.root, "source.cpp"), [os.path.join(self.root, "page.md")])
        self.assertEqual(text.split(), "int before; int one; int two; int three;".split())


class Docs(Tree):
    def test_what_pages_name_is_there(self):
        self.write("fabric/a.h")
        self.write("fabric/b_internal.h")
        self.write("fabric/docs/other.md", "# A heading\n")
        good = "`fabric/a.h` `fabric/*.h` [x](other.md#a-heading) [y](https://x.y) ./dev test\n#include <fabric/a.h>\n"
        self.write("fabric/docs/page.md", good + "<!-- reserved -->\n`strategies/none/`\n<!-- /reserved -->\n")
        self.assertEqual(docs_paths.page_problems(self.root, "fabric/docs/page.md", {"test"}), [])
        for bad in ("`fabric/gone.h`", "`plugins/*.cpp`", "[x](gone.md)", "[x](other.md#no-such)", "./dev tset",
                    "#include <fabric/gone.h>", '#include "fabric/b_internal.h"'):
            self.write("fabric/docs/page.md", good + bad + "\n")
            found = docs_paths.page_problems(self.root, "fabric/docs/page.md", {"test"})
            self.assertEqual(len(found), 1, bad)
            self.assertIn("page.md:3: ", found[0])


class Waits(Tree):
    REMOVED = [("wait", "strategies/a.cpp", "event.block(later);", "if (!WITHOUT) event.block(later);")]
    OTHER = [(r"^strategies/b\.cpp: ", "of the host")]

    def problems(self):
        return remove_waits.list_problems(self.root, self.REMOVED, self.OTHER)

    def test_each_is_in_a_table_and_each_row_has_a_place(self):
        self.write("strategies/a.cpp", "// event.block(earlier);\nevent.block(later);\n")
        self.write("strategies/a_test.cpp", "event.record(earlier);\n")
        self.write("strategies/b.cpp", "thread.wait();\n")
        self.assertEqual(self.problems(), [])
        self.write("strategies/c.cpp", "event.record(earlier);\n")
        self.assertIn("strategies/c.cpp:1", self.problems()[0])
        os.remove(os.path.join(self.root, "strategies/c.cpp"))
        self.write("strategies/a.cpp", "")
        self.write("strategies/b.cpp", "")
        self.assertIn("is there 0 times", self.problems()[0])
        self.assertIn("no place", self.problems()[1])

    def test_sources_come_back(self):
        self.write("strategies/a.cpp", "event.block(later);\n")
        path = os.path.join(self.root, "strategies/a.cpp")

        def text():
            with open(path, encoding="utf-8") as file:
                return file.read()
        patched = remove_waits.Patched(self.root, "build", self.REMOVED)
        with self.assertRaises(KeyboardInterrupt), patched:
            self.assertIn("getenv", text())
            raise KeyboardInterrupt
        self.assertEqual(text(), "event.block(later);\n")
        patched.__enter__()  # and killed
        with remove_waits.Patched(self.root, "build", self.REMOVED):
            self.assertEqual(text().count("getenv"), 1)
        self.assertEqual(text(), "event.block(later);\n")


class Lifecycle(unittest.TestCase):
    def found(self, text, now="0.4.0", page=""):
        return lifecycle.problems([("fabric/a.h", text)], now, page)

    def test_deprecations_end(self):
        pair = 'FABRIC_DEPRECATED("0.3", "use g()") void f();\nvoid f() { FABRIC_WARN_DEPRECATED("f()", "0.3", "use g()"); }\n'
        self.assertEqual(self.found(pair), [])
        for now in ("0.5.0", "0.6.1", "1.0.0"):
            self.assertEqual(len(self.found(pair, now)), 2)
            self.assertIn("overdue", self.found(pair, now)[0])
        self.assertIn("to come", self.found(pair, "0.2.0")[0])
        self.assertIn("no FABRIC_WARN_DEPRECATED", self.found('FABRIC_DEPRECATED("0.3", "use g()") void f();')[0])

    def test_deprecated_settings_end(self):
        text = ('FABRIC_RENAMED(Config, (old, now, "0.3"), (older, now2,\n "0.2"))\n'
                'FABRIC_DEPRECATED_FIELDS(Config, (mode, "0.2", "use (x)"))\n')
        self.assertEqual([line.split("'")[1] for line in self.found(text, "0.4.0")], ["older", "mode"])
        self.assertEqual(self.found(text, "0.3.0"), [])

    def test_experimental_classes_are_told_of(self):
        text = "/// A toy.\n/// @experimental\nclass FABRIC_API Toy : public Base {\n"
        page = "<!-- experimental -->\n| `Toy` | a toy |\n<!-- /experimental -->\n"
        said = 'FABRIC_WARN_EXPERIMENTAL("Toy");\n'
        self.assertEqual(self.found(text + said, page=page), [])
        self.assertIn("has no FABRIC_WARN_EXPERIMENTAL", self.found(text, page=page)[0])
        self.assertIn("not in the table", self.found(text + said)[0])
        self.assertIn("no header marks", self.found("", page=page)[0])


class Consistency(unittest.TestCase):
    """What several files of the project say is the same in all of them."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

    def read(self, path):
        with open(os.path.join(self.root, path), encoding="utf-8") as file:
            return file.read()

    def test_one_clang_format(self):
        version = re.search(r"^clang_format_version=(\S+)", self.read(".ci/dev/checks.sh"), re.M)[1]
        self.assertIn(f"clang-format=={version}]", self.read(".pre-commit-config.yaml"))

    def test_one_range_of_libtorch(self):
        minors = re.findall(r"\[(\d+)\]=(2[.\d]+)", re.search(r"torch_version=\((.*?)\)", self.read(".ci/dev/torch.sh"))[1])
        oldest, newest = int(minors[0][0]), int(minors[-1][0])
        self.assertGreaterEqual(len(minors), 4)
        self.assertEqual([int(minor) for minor, _ in minors], list(range(oldest, newest + 1)))
        torch = self.read("fabric/cmake/FabricTorch.cmake")
        self.assertIn(f"FABRIC_TORCH_MINOR LESS {oldest})", torch)
        self.assertIn(f"FABRIC_TORCH_MINOR GREATER {newest})", torch)
        self.assertIn(f'FABRIC_TORCH_VERSION {minors[-1][1]} CACHE', torch)
        version = re.search(r'FABRIC_VERSION "([^"]+)"', self.read("fabric/version.h"))[1]
        row = re.search(rf"^\| {re.escape(version)} \| (\S+) to (\S+) \|", self.read("fabric/docs/versioning.md"), re.M)
        self.assertEqual((row[1], row[2]), (minors[0][1], minors[-1][1]))
        for minor, _ in minors:
            self.assertIn(f"'2.{minor}'", self.read(".github/workflows/ci.yml"))

    def test_each_command_is_explained(self):
        dev = self.read("dev")
        listed = set(re.findall(r"^  ([a-z][a-z-]+)  +\S", dev.split("usage() {")[1].split("TEXT\n}")[0], re.M)) - {"help"}
        explained = set(re.findall(r"^    ([a-z-]+)\) (?:echo|cat)", dev, re.M))
        self.assertEqual(listed, explained)
        pages = "".join(self.read(page) for page in docs_paths.pages(self.root))
        for command in listed:
            self.assertRegex(pages, rf"\./dev {command}\b|`{command}`")


if __name__ == "__main__":
    unittest.main()

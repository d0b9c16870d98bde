"""What compiled before with the same texts, compiler and LibTorch is not compiled again.

A stamp is an empty file; its name is a hash of everything that the outcome depends on: the texts of the source and of
those of the project's headers that it leads to, the command line, the compiler's version, LibTorch's place and version.
Stamps lie in the folder of the build, or in FABRIC_TEST_STAMPS, which ./dev sets for all clones of one user.
"""
import hashlib
import os
import re
import subprocess
import time

INCLUDE = re.compile(r'^ *# *include +[<"]([^>"]+)[>"]', re.M)
LIBTORCH = re.compile(r"(ATen|c10|caffe2|torch)/")
KEPT_DAYS = 60


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def closure(root, includes, known=None):
    """Texts of the project's own headers that these includes lead to, and the headers of LibTorch that all these name."""
    known = {} if known is None else known
    texts, libtorch, left = {}, set(), list(includes)
    while left:
        header = left.pop()
        if LIBTORCH.match(header):
            libtorch.add(header)
        elif header not in texts and os.path.exists(os.path.join(root, header)):
            if header not in known:
                known[header] = read(os.path.join(root, header))
            texts[header] = known[header]
            left += INCLUDE.findall(known[header])
    return texts, libtorch


class Stamps:
    def __init__(self, folder, compiler, torch=None):
        """`compiler`: the words that start it; `torch`: LibTorch's folder."""
        self.folder = os.environ.get("FABRIC_TEST_STAMPS") or folder
        self.compiler = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
        version = os.path.join(torch or "", "include/torch/headeronly/version.h")
        self.torch = (torch, read(version) if torch and os.path.exists(version) else "")
        os.makedirs(self.folder, exist_ok=True)

    def of(self, *parts, with_torch=True):
        """The stamp of what depends on `parts`, and on LibTorch or not."""
        key = repr((self.compiler, self.torch if with_torch else "", parts, "3"))
        return os.path.join(self.folder, hashlib.sha256(key.encode()).hexdigest())

    @staticmethod
    def has(stamp):
        if not os.path.exists(stamp):
            return False
        os.utime(stamp)
        return True

    @staticmethod
    def keep(stamp):
        with open(stamp, "w", encoding="utf-8"):
            pass

    def forget_old(self):
        """Removes those that nobody asked for during the last weeks."""
        for entry in os.scandir(self.folder):
            try:
                if re.fullmatch("[0-9a-f]{64}", entry.name) and entry.stat().st_mtime < time.time() - KEPT_DAYS * 86400:
                    os.remove(entry.path)
            except FileNotFoundError:
                pass  # another run was faster

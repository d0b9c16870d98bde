"""Writes the character tables of the example's tokenizer, asking the `tokenizers` package about every code point.

Usage: PYTHON make_unicode_tables.py ../../../examples/finetune_text/unicode_tables.inc     (tokenizers 0.23.3)

What BERT's uncased normaliser and pre-tokenizer do with a character does not depend on its neighbours (apart from the
order of several combining marks, most of which are dropped), so that asking for each between two letters tells all.
"""

import bisect
import sys
import textwrap

from tokenizers import __version__, normalizers, pre_tokenizers

normalizer = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True)
splitter = pre_tokenizers.BertPreTokenizer()

KINDS = {0: "dropped", 1: "space", 2: "word of its own"}


def ask(code):
    """The kind (None: part of a word) and what the character becomes."""
    words = [word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str("x" + chr(code) + "x"))]
    if words == ["xx"]:
        return 0, None
    if words == ["x", "x"]:
        return 1, None
    if len(words) == 3 and words[0] == words[2] == "x":
        return 2, words[1]
    assert len(words) == 1 and words[0][0] == words[0][-1] == "x", (hex(code), words)
    return None, words[0][1:-1]


def hangul(code):
    """The algorithmic decomposition, which the C++ side does instead of a table."""
    if not 0xAC00 <= code <= 0xD7A3:
        return None
    index = code - 0xAC00
    tail = index % 28
    return chr(0x1100 + index // 588) + chr(0x1161 + index % 588 // 28) + (chr(0x11A7 + tail) if tail else "")


def add(ranges, code, value):
    if ranges and ranges[-1][1] == code - 1 and ranges[-1][2] == value:
        ranges[-1][1] = code
    else:
        ranges.append([code, code, value])


def runs_of(folds):
    """(first, count, step, difference) for sorted single-character folds; step 2 is alternating upper and lower case."""
    left = dict(folds)
    runs = []
    while left:
        first = next(iter(left))
        best = (1, 1)
        for step in (1, 2):
            count = 1
            while left.get(first + count * step) == left[first] + count * step:
                count += 1
            best = max(best, (count, step), key=lambda run: run[0])
        runs.append((first, best[0], best[1], left[first] - first))
        for i in range(best[0]):
            del left[first + i * best[1]]
    return runs


def overlap(runs):
    """How many runs may have to be looked at, from the last that begins at or before a character backwards."""
    firsts = [run[0] for run in runs]
    return max(bisect.bisect_right(firsts, first + i * step) - place
               for place, (first, count, step, _) in enumerate(runs) for i in range(count))


def rows(items):
    return textwrap.fill(" ".join("{" + ",".join(str(x) for x in item) + "}," for item in items), 118,
                         initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False) + "\n"


def main():
    kinds, single, several = [], {}, []
    for code in range(0x110000):
        if 0xD800 <= code < 0xE000:
            continue
        kind, text = ask(code)
        if kind is not None:
            add(kinds, code, kind)
        if text is None or text == chr(code):
            continue
        if hangul(code):
            assert text == hangul(code), hex(code)
        elif len(text) == 1:
            single[code] = ord(text)
        else:
            assert len(text) <= 3, hex(code)
            several.append((code, *(ord(c) for c in text), *[0] * (3 - len(text))))
    folds = runs_of(single)
    with open(sys.argv[1], "w") as out:
        out.write(f"// Made by tests/parity/finetune_text/make_unicode_tables.py with tokenizers {__version__}.\n")
        out.write("// First and last code point; " + ", ".join(f"{k}: {v}" for k, v in KINDS.items()) + ".\n")
        out.write("constexpr KindRange kKinds[] = {\n" + rows(kinds) + "};\n")
        out.write("// First code point, count, step, what is added to each.\n")
        out.write("constexpr FoldRun kFolds[] = {\n" + rows(folds) + "};\n")
        out.write("// Runs with step 2 overlap others.\n")
        out.write(f"constexpr int kOverlappingRuns = {overlap(folds)};\n")
        out.write("// Code point and the two or three that it becomes.\n")
        out.write("constexpr FoldMany kFoldMany[] = {\n" + rows(several) + "};\n")


if __name__ == "__main__":
    main()

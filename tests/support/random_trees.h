#pragma once
// Trees and broken texts for tests, the same on every run.
#include <bit>
#include <cmath>
#include <random>

#include <fabric/base/tree.h>

namespace fabric::testing {

class RandomTrees {
 public:
  explicit RandomTrees(unsigned seed) : random_(seed) {}

  std::uint64_t below(std::uint64_t limit) { return random_() % limit; }

  double number() {
    // NaN has its own test, since it equals nothing.
    for (;;)
      if (double value = std::bit_cast<double>(random_()); !std::isnan(value))
        return below(4) ? value : below(100) / 8.0;
  }

  std::string text() {
    static const std::vector<std::string> kNasty = {"",
                                                    " ",
                                                    "~",
                                                    "null",
                                                    "true",
                                                    "yes",
                                                    "No",
                                                    "1",
                                                    "-1",
                                                    "0x10",
                                                    "1e5",
                                                    ".inf",
                                                    ".nan",
                                                    "NaN",
                                                    "Infinity",
                                                    "1_000",
                                                    "2024-01-01",
                                                    "a: b",
                                                    "# no",
                                                    "- x",
                                                    "-",
                                                    "---",
                                                    "...",
                                                    "<<",
                                                    "&a",
                                                    "*a",
                                                    "!t",
                                                    "%x",
                                                    "@",
                                                    "`",
                                                    "{",
                                                    "[]",
                                                    "a,b",
                                                    "'",
                                                    "\"",
                                                    "\\",
                                                    "a\nb",
                                                    "\r\n",
                                                    "\t",
                                                    "é",
                                                    "日本",
                                                    "\U0001f600",
                                                    "\u2028",
                                                    "\u0085",
                                                    "\ufeff",
                                                    "\x7f",
                                                    "\x01",
                                                    " lead",
                                                    "trail ",
                                                    "18446744073709551615",
                                                    "=",
                                                    "?",
                                                    "? x",
                                                    ":",
                                                    "a:",
                                                    "|",
                                                    ">",
                                                    "--flag",
                                                    "/",
                                                    "a/b.c",
                                                    "key with spaces",
                                                    "0o17",
                                                    "+5",
                                                    "1."};
    std::string out = kNasty[below(kNasty.size())];
    for (auto n = below(3); n > 0; --n) out += kNasty[below(kNasty.size())];
    return out;
  }

  Tree tree(int depth) {
    switch (below(depth > 0 ? 8 : 6)) {
      case 0:
        return {};
      case 1:
        return below(2) == 0;
      case 2:
        return static_cast<std::int64_t>(random_() >> below(64));
      case 3:
        return number();
      case 4:
      case 5:
        return text();
      case 6: {
        Tree::List list;
        for (auto n = below(5); n > 0; --n) list.push_back(tree(depth - 1));
        return list;
      }
      default: {
        Tree::Map map;
        for (auto n = below(5); n > 0; --n) map[text()] = tree(depth - 1);
        return map;
      }
    }
  }

  // A text with some bytes changed, removed or doubled.
  std::string broken(std::string text) {
    for (auto n = 1 + below(4); n > 0 && !text.empty(); --n) {
      const std::size_t at = below(text.size());
      static const std::string kSyntax = "{}[],:-?&*!|>'\"%@#\\ \n\t~<";
      switch (below(4)) {
        case 0:
          text[at] = static_cast<char>(below(256));
          break;
        case 1:
          text[at] = kSyntax[below(kSyntax.size())];
          break;
        case 2:
          text.erase(at, 1 + below(4));
          break;
        default:
          text.insert(at, text.substr(below(text.size()), below(12)));
      }
    }
    return text;
  }

 private:
  std::mt19937_64 random_;
};

}  // namespace fabric::testing

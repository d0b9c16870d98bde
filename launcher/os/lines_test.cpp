#include "launcher/os/lines.h"

#include <algorithm>

#include "tests/support/catch.h"

using fabric::Lines;

TEST_CASE("a stream is cut into whole lines", "[lines]") {
  Lines lines;
  std::string out;
  lines.feed("one\ntw", "> ", out);
  CHECK(out == "> one\n");
  lines.feed("o\n\nthree", "> ", out);
  CHECK(out == "> one\n> two\n> \n");
  lines.finish("> ", out);
  CHECK(out == "> one\n> two\n> \n> three\n");
  lines.finish("> ", out);
  CHECK(lines.last() == std::deque<std::string>{"one", "two", "", "three"});
}

TEST_CASE("only the last lines are kept, and long ones in part", "[lines]") {
  Lines lines;
  std::string out;
  for (int i = 0; i < 100; ++i) lines.feed(std::to_string(i) + "\n", "", out);
  CHECK(lines.last().size() == Lines::kKept);
  CHECK(lines.last().front() == "80");
  lines.feed(std::string(5000, 'x') + "\n", "", out);
  CHECK(lines.last().back().size() < 1100);
}

TEST_CASE("a line without an end does not grow for ever", "[lines]") {
  Lines lines;
  std::string out;
  for (int i = 0; i < 300; ++i) lines.feed(std::string(1000, 'x'), "", out);
  CHECK(out.size() > 190000);
  lines.finish("", out);
  CHECK(std::count(out.begin(), out.end(), 'x') == 300000);
}

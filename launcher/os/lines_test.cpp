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

TEST_CASE("progress that is written over itself is passed on as it comes, with its prefix", "[lines]") {
  Lines lines;
  std::string out;
  lines.feed("\r 1%", "> ", out);
  CHECK(out.empty());
  lines.feed("\r 2%\r 3%", "> ", out);
  CHECK(out == ">  1%\r>  2%\r");
  lines.feed("\rdone\n", "> ", out);
  CHECK(out == ">  1%\r>  2%\r>  3%\r> done\n");
  CHECK(lines.last() == std::deque<std::string>{"done"});
  out.clear();
  lines.feed("10%\r", "> ", out);
  lines.feed("20%\r", "> ", out);
  lines.feed("other system\r\n", "> ", out);
  CHECK(out == "> 10%\r> 20%\r> other system\r\n");
  CHECK(lines.picture().empty());
}

TEST_CASE("for a terminal the unfinished line is a picture", "[lines]") {
  Lines lines;
  lines.keep_picture();
  std::string out;
  lines.feed("no picture", "> ", out);
  CHECK(lines.picture().empty());
  lines.feed("\n\r 1%", "> ", out);
  CHECK(lines.picture() == " 1%");
  lines.feed("\r 2%", "> ", out);
  CHECK(lines.picture() == " 2%");
  lines.feed("\r", "> ", out);
  CHECK(lines.picture() == " 2%");
  lines.feed("\n", "> ", out);
  CHECK(lines.picture().empty());
  CHECK(out == "> no picture\n>  2%\r\n");
  lines.feed("10%\r", "> ", out);
  CHECK(lines.picture() == "10%");
  out.clear();
  lines.finish("> ", out);
  CHECK(out == "> 10%\r\n");
}

TEST_CASE("a line without an end does not grow for ever", "[lines]") {
  Lines lines;
  std::string out;
  for (int i = 0; i < 300; ++i) lines.feed(std::string(1000, 'x'), "", out);
  CHECK(out.size() > 190000);
  lines.finish("", out);
  CHECK(std::count(out.begin(), out.end(), 'x') == 300000);
}

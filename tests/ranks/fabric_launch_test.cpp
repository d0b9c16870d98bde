// A whole Fabric program that starts its own ranks, in every way there is: the same numbers come out of each.
#include <algorithm>

#include "tests/ranks/launch_support.h"
#include "tests/support/catch.h"

using launch_support::run;

namespace {

std::string result_of(const std::string& line) {
  auto at = line.find("result ");
  return at == std::string::npos ? "" : line.substr(at + 7);
}

}  // namespace

TEST_CASE("a program that launches itself trains the same however its ranks are started", "[launch]") {
  auto reference = run({"popen"}, {}, FABRIC_TRAINING_PROGRAM);
  INFO(reference.output);
  REQUIRE(reference.code == 0);
  auto lines = reference.lines("rank 0 of 2 result ");
  REQUIRE(lines.size() == 1);
  auto number = result_of(lines[0]);
  CHECK(reference.lines("rank 1 of 2 result " + number).size() == 1);
  CHECK(reference.lines("again " + number).size() == 2);
  CHECK(reference.lines("before launch").size() == 2);

  for (std::string method : {"auto", "copy"}) {
    for (std::string before : {"", "trained"}) {
      auto result = run({method, before}, {}, FABRIC_TRAINING_PROGRAM);
      INFO(method << ' ' << before << '\n' << result.output);
      CHECK(result.code == 0);
      CHECK(result.left.empty());
      CHECK(result.lines(" of 2 result " + number).size() == 2);
      CHECK(result.lines("again " + number).size() == 2);
      CHECK(result.lines("before launch").size() == 1);
    }
  }
  for (std::string method : {"spawn", "fork"}) {
    auto result = run({method}, {}, FABRIC_TRAINING_PROGRAM);
    INFO(method << '\n' << result.output);
    CHECK(result.code == 0);
    CHECK(result.left.empty());
    CHECK(result.lines("result " + number).size() == 1);
    auto refused = run({method, "without function"}, {}, FABRIC_TRAINING_PROGRAM);
    CHECK(refused.has("refused: strategy ddp starts its ranks to run a function"));
  }
}

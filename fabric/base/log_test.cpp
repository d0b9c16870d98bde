// Each case runs in a process of its own, since a process reads its variables once.
#include <fabric/base/log.h>

#include <string>

#include "tests/support/ranks.h"

namespace {

std::string said_by_process(std::map<std::string, std::string> variables) {
  return ranks::run("speaks", {.world_size = 1, .env = std::move(variables)}).at(0).output;
}
bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

RANKS_BODY("speaks") {
  fabric::log::info("first");
  fabric::log::debug("second");
  fabric::log::rank_zero_info("third");
}

TEST_CASE("a level that is none is named once, and taken for info", "[log]") {
  auto said = said_by_process({{"FABRIC_LOG_LEVEL", "loud"}});
  CHECK(has(said, "FABRIC_LOG_LEVEL is 'loud'"));
  CHECK(said.find("FABRIC_LOG_LEVEL") == said.rfind("FABRIC_LOG_LEVEL"));
  CHECK(has(said, "trace, debug, info, warn, error, off"));
  CHECK(has(said, "first"));
  CHECK_FALSE(has(said, "second"));
}

TEST_CASE("an empty level is none, and a known one is heeded", "[log]") {
  auto said = said_by_process({{"FABRIC_LOG_LEVEL", ""}});
  CHECK_FALSE(has(said, "FABRIC_LOG_LEVEL"));
  CHECK(has(said, "first"));
  CHECK(said_by_process({{"FABRIC_LOG_LEVEL", "error"}}).empty());
  CHECK(has(said_by_process({{"FABRIC_LOG_LEVEL", "debug"}}), "second"));
}

TEST_CASE("before a Fabric exists, the launcher's rank decides who speaks", "[log]") {
  CHECK(has(said_by_process({}), "third"));
  auto of_rank_one = ranks::run("speaks", {.world_size = 2, .env = {{"FABRIC_LOG_LEVEL", "info"}}}).at(1).output;
  CHECK(has(of_rank_one, "first"));
  CHECK_FALSE(has(of_rank_one, "third"));
}

// A real program on Fabric under `fabric run`: what it says when it fails or hangs, and which settings reach it.
#include <fabric/base/tree_io.h>

#include "tests/ranks/run_support.h"
#include "tests/support/catch.h"

using run_support::Folder;
using run_support::read_file;
using run_support::Result;
using run_support::run;

namespace {

std::vector<std::string> words(const std::vector<std::string>& flags, const std::vector<std::string>& arguments) {
  std::vector<std::string> all{"run"};
  all.insert(all.end(), flags.begin(), flags.end());
  all.push_back(FABRIC_TRAINING_PROGRAM);
  all.insert(all.end(), arguments.begin(), arguments.end());
  return all;
}

}  // namespace

TEST_CASE("an exception of a program on Fabric is in the report, with what() and a backtrace", "[run]") {
  Folder folder;
  auto result = run(words({"-n", "2", "--report", folder / "report.json"}, {"--deed", "fail"}));
  INFO(result.error);
  CHECK(result.left.empty());
  CHECK(result.code == 134);
  auto report = fabric::read_json(read_file(folder / "report.json"));
  const auto& cause = report.at("attempts").as_list()[0].at("root_cause");
  CHECK(cause.at("rank").as_int() == 1);
  CHECK(cause.at("error").as_string() == "std::runtime_error: the data of rank 1 are lost");
  CHECK(cause.at("backtrace").as_string().starts_with("#0 (anonymous namespace)::lose_data("));
  CHECK(result.said("error: std::runtime_error: the data of rank 1 are lost"));
}

TEST_CASE("a rank of Fabric that hangs is named, and not the one that waits for it", "[run]") {
  auto result = run(words({"-n", "2", "--heartbeat-timeout", "1", "--grace", "3"}, {"--deed", "hang"}));
  INFO(result.error);
  CHECK(result.left.empty());
  CHECK(result.code == 94);
  CHECK(result.said("rank 1 (local rank 1"));
  CHECK(result.said("in section 'all_reduce'"));
  CHECK(result.said("other ranks: stopped: 0 (in section 'barrier_epoch_end')"));
}

TEST_CASE("settings of the launcher reach Fabric, and a contradiction is an error", "[run]") {
  auto result = run(words({"--devices", "2", "--accelerator", "cpu", "--strategy", "ddp", "--precision", "bf16-mixed"},
                          {"--deed", "describe"}));
  INFO(result.out << result.error);
  CHECK(result.code == 0);
  CHECK(result.lines("strategy ddp, accelerator cpu, device cpu, precision bf16-mixed").size() == 2);
  auto contradiction = run(words({"--precision", "bf16-mixed"}, {"--deed", "contradict"}));
  CHECK(contradiction.code == 2);
  CHECK(contradiction.said("the launcher was told precision=bf16-mixed, but the program itself sets another value"));
  CHECK_FALSE(contradiction.said("ConfigError"));
}

#include <unistd.h>

#include <cstdio>
#include <fstream>

#include "fabric/config/config_test_support.h"
#include "tests/support/captured_log.h"
#include "tests/support/catch.h"

using namespace fabric;
using fabric::testing::config_error;
using fabric::testing::log_of;
using fabric::testing::parse_words;

namespace {

// A name of former times for each way in which settings nest.
struct RenamedSgd {
  static constexpr std::string_view kName = "sgd";
  double lr = 0.1;
  FABRIC_FIELDS(RenamedSgd, lr)
  FABRIC_RENAMED(RenamedSgd, (rate, lr, "0.3"))
};
struct OtherOptimizer {
  static constexpr std::string_view kName = "adam";
  double eps = 1e-8;
  FABRIC_FIELDS(OtherOptimizer, eps)
};
struct RenamedTrain {
  int max_steps = 10;
  bool shuffle = true;
  FABRIC_FIELDS(RenamedTrain, max_steps, shuffle)
  FABRIC_RENAMED(RenamedTrain, (steps, max_steps, "0.3"), (mix, shuffle, "0.4"))
};
struct FormerConfig {
  RenamedTrain train;
  std::variant<RenamedSgd, OtherOptimizer> optimizer;
  std::string mode = "a";
  int lanes = 1;
  FABRIC_FIELDS(FormerConfig, train, optimizer, mode, lanes)
  FABRIC_HELP(FormerConfig, (lanes, "how many at a time"))
  FABRIC_DEPRECATED_FIELDS(FormerConfig, (mode, "0.3", "use train.shuffle"))
  FABRIC_EXPERIMENTAL_FIELDS(FormerConfig, lanes)
};

FormerConfig former_of(const std::vector<std::string>& words) { return parse_words<FormerConfig>(words).config; }

struct LifecycleFile {
  explicit LifecycleFile(const std::string& text)
      : path("/tmp/fabric_lifecycle_" + std::to_string(getpid()) + ".yaml") {
    std::ofstream(path) << text;
  }
  ~LifecycleFile() { std::remove(path.c_str()); }
  std::string path;
};

}  // namespace

TEST_CASE("A setting's former name works, with one warning that names both versions", "[config][lifecycle]") {
  FormerConfig config;
  CHECK(log_of([&] {
          config = former_of({"--train.steps", "3"});
        }) ==
        "[fabric] warning: the name 'train.steps' of a setting is deprecated since TorchFabric 0.3 and will be gone in "
        "0.5: "
        "it is called 'train.max_steps' now\n");
  CHECK(config.train.max_steps == 3);
  CHECK(log_of([&] { config = former_of({"--train.steps=4"}); }).empty());
  CHECK(config.train.max_steps == 4);
  log_of([&] { config = former_of({"--no-train.mix", "--optimizer.rate", "0.5"}); });
  CHECK_FALSE(config.train.shuffle);
  CHECK(std::get<RenamedSgd>(config.optimizer).lr == 0.5);
  log_of([&] { config = from_tree<FormerConfig>(Tree::Map{{"train", Tree::Map{{"steps", 5}}}}); });
  CHECK(config.train.max_steps == 5);
}

TEST_CASE("A former name in a file has its line as the origin", "[config][lifecycle]") {
  LifecycleFile file("train:\n  mix: false\n  steps: 7\noptimizer:\n  rate: 2.0\n");
  Parsed<FormerConfig> parsed;
  log_of([&] { parsed = parse_words<FormerConfig>({"--config", file.path}); });
  CHECK(parsed.config.train.max_steps == 7);
  CHECK(parsed.origins.at("train.max_steps") == file.path + ":3");
  CHECK(parsed.origins.at("optimizer.lr") == file.path + ":5");
  LifecycleFile twice("train:\n  max_steps: 1\n  steps: 7\n");
  CHECK_THAT(config_error([&] {
               parse_words<FormerConfig>({"--config", twice.path});
             }),
             Catch::Contains(":3: ") && Catch::Contains("'steps' is the former name of 'max_steps'"));
}

TEST_CASE("Deprecated and experimental settings are marked in --help and told of when changed", "[config][lifecycle]") {
  const std::string help = parse_words<FormerConfig>({"--help"}).output;
  CHECK_THAT(help, Catch::Contains("how many at a time (experimental)"));
  CHECK_THAT(help, Catch::Contains("(deprecated since 0.3, gone in 0.5: use train.shuffle)"));
  CHECK(help.find("steps") != help.npos);
  CHECK(help.find("train.steps") == help.npos);
  CHECK(log_of([] { former_of({"--mode", "a", "--lanes", "1"}); }).empty());  // as they were
  CHECK(log_of([] {
          former_of({"--lanes", "2"});
        }) == "[fabric] warning: the setting 'lanes' is experimental: it may change or go in any release\n");
  CHECK(log_of([] {
          former_of({"--mode", "b"});
        }) ==
        "[fabric] warning: the setting 'mode' is deprecated since TorchFabric 0.3 and will be gone in 0.5: use "
        "train.shuffle\n");
}

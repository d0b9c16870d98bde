#include <fabric/strategies/registry.h>

#include <algorithm>

#include <fabric/strategies/single_device.h>

#include "tests/support/catch.h"

using Catch::Contains;
using fabric::StrategyRegistry;
using fabric::Tree;

namespace {

// Keeps the settings it was made with.
class Mine : public fabric::SingleDeviceStrategy {
 public:
  explicit Mine(Tree settings) : settings(std::move(settings)) {}
  std::string name() const override { return "mine"; }
  Tree settings;
};

std::shared_ptr<fabric::Strategy> make_mine(const Tree& params) { return std::make_shared<Mine>(params); }

}  // namespace

TEST_CASE("the built-in strategies are there under their names", "[registry]") {
  auto names = StrategyRegistry::instance().available_strategies();
  CHECK(std::is_sorted(names.begin(), names.end()));
  for (const char* name :
       {"single_device", "dp", "ddp", "ddp_find_unused_parameters_true", "ddp_spawn", "ddp_fork", "ddp_notebook"}) {
    INFO(name);
    CHECK(std::find(names.begin(), names.end(), name) != names.end());
    CHECK_FALSE(StrategyRegistry::instance().description(name).empty());
  }
  CHECK(StrategyRegistry::instance().contains("DDP"));
}

TEST_CASE("a strategy of the user's own has a name, presets and settings", "[registry]") {
  auto& registry = StrategyRegistry::instance();
  registry.register_strategy("Mine", make_mine, "keeps its settings", Tree::Map{{"depth", 3}, {"wide", true}});
  auto mine = std::static_pointer_cast<Mine>(registry.get("MINE", Tree::Map{{"depth", 5}}));
  CHECK(mine->settings.at("depth").as_int() == 5);
  CHECK(mine->settings.at("wide").as_bool());
  CHECK(registry.description("mine") == "keeps its settings");
  CHECK_THROWS_WITH(registry.register_strategy("mine", make_mine), Contains("registered already"));
  registry.register_strategy("mine", make_mine, "another", Tree::Map{}, /*override_existing=*/true);
  CHECK(registry.description("mine") == "another");
  registry.remove("mine");
  CHECK_FALSE(registry.contains("mine"));
  CHECK_THROWS_WITH(registry.remove("mine"), Contains("unknown strategy 'mine'"));
  CHECK_THROWS_WITH(registry.get("dpp"), Contains("'ddp'"));
  CHECK_THROWS_WITH(registry.register_strategy("", make_mine), Contains("needs a name"));
}

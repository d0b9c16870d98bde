// A part of one's own of each kind, registered through public headers alone, and what lists them.
#include <torch/torch.h>

#include <algorithm>
#include <thread>

#include <fabric/fabric.h>
#include <fabric/helpers/finetuning/strategy_adapter.h>
#include <fabric/helpers/list_parts.h>
#include <fabric/helpers/lr/lr_scheduler_registry.h>
#include <fabric/helpers/optimizer_registry.h>
#include <fabric/plugins/collectives/backend.h>
#include <fabric/plugins/environments/fabric.h>
#include <fabric/plugins/loggers/registry.h>
#include <fabric/strategies/ddp_comm_hooks.h>
#include <fabric/strategies/registry.h>
#include <fabric/strategies/single_device.h>

#include "tests/support/catch.h"

using namespace fabric;
using Catch::Contains;

namespace {

struct Notebook : Logger {
  std::string name() const override { return "notebook"; }
  std::string version() const override { return "1"; }
  std::string root_dir() const override { return ""; }
  std::string log_dir() const override { return ""; }
  void log_metrics(const Metrics&, std::optional<std::int64_t>) override {}
  void log_hyperparams(const Tree&) override {}
};

struct OwnEnvironment : FabricEnvironment {
  using FabricEnvironment::FabricEnvironment;
  std::string name() const override { return "own"; }
};

struct OwnFormat : CheckpointIO {
  std::string name() const override { return "own"; }
  void save(const Value&, const std::filesystem::path&) override {}
  Value load(const std::filesystem::path&) override { return Value::Map{}; }
};

struct Kind {
  std::string kind;
  std::function<void(bool override_existing)> add;
  std::function<void(const std::string& name)> make;
};

std::vector<Kind> kinds() {
  return {
      {"strategy",
       [](bool again) {
         StrategyRegistry::instance().register_strategy(
             "own_part", [](const Tree&) { return std::make_shared<SingleDeviceStrategy>(); }, "mine", Tree::Map{},
             again);
       },
       [](const std::string& name) { StrategyRegistry::instance().get(name); }},
      {"accelerator",
       [](bool again) {
         register_accelerator(
             "own_part", [] { return make_accelerator("cpu"); }, again, "mine");
       },
       [](const std::string& name) { make_accelerator(name); }},
      {"precision",
       [](bool again) {
         register_precision(
             "own_part", [](const std::string&) { return std::make_shared<Precision>(); }, again, "mine");
       },
       [](const std::string& name) { make_precision(name); }},
      {"logger",
       [](bool again) {
         register_logger(
             "own_part", [](const Tree::Map&) { return std::make_shared<Notebook>(); }, again, "mine");
       },
       [](const std::string& name) { make_logger(name); }},
      {"environment",
       [](bool again) {
         register_environment(
             "own_part", [](const auto& env) { return std::make_shared<OwnEnvironment>(env); },
             [](const EnvReader& env) { return env.has("OWN_SCHEDULER"); }, again, "mine");
       },
       [](const std::string& name) { make_environment(name); }},
      {"checkpoint format",
       [](bool again) {
         register_checkpoint_io(
             "own_part", [] { return std::make_shared<OwnFormat>(); }, again, "mine");
       },
       [](const std::string& name) { make_checkpoint_io(name); }},
      {"process group backend",
       [](bool again) {
         register_backend("own_part",
                          {.make = [](const BackendRequest& request) { return make_backend("gloo", request); }}, again,
                          "mine");
       },
       [](const std::string& name) { ProcessGroup::create({.backend = name}, {}, c10::kCPU); }},
      {"communication hook",
       [](bool again) {
         register_comm_hook(
             "own_part", [](const ProcessGroup& group, const Tree&) { return make_comm_hook("allreduce", "", group); },
             again, "mine");
       },
       [](const std::string& name) { make_comm_hook(name, "", ProcessGroup::single()); }},
      {"LR scheduler",
       [](bool again) {
         register_lr_scheduler(
             "own_part",
             [](torch::optim::Optimizer& optimizer, const Tree&) {
               return make_lr_scheduler("ConstantLR", {}, optimizer);
             },
             again);
       },
       [](const std::string& name) { lr_scheduler_name(name); }},
      {"optimizer",
       [](bool again) {
         register_optimizer(
             "own_part", [](const Tree&, auto groups) { return make_optimizer("SGD", {}, std::move(groups)); }, again);
       },
       [](const std::string& name) { optimizer_name(name); }},
      {"strategy adapter",
       [](bool again) {
         StrategyAdapterRegistry::instance().register_adapter(
             "own_part", [](const Tree&) { return std::make_shared<StrategyAdapter>(); }, again);
       },
       [](const std::string& name) { StrategyAdapterRegistry::instance().make(name, {}); }},
  };
}

}  // namespace

TEST_CASE("a program adds a part of its own of every kind", "[registry]") {
  for (const auto& [kind, add, make] : kinds()) {
    INFO(kind);
    add(/*override_existing=*/false);
    make("own_part");
    CHECK_THROWS_WITH(add(false), Contains("own_part") && Contains("registered already"));
    add(/*override_existing=*/true);
    make("own_part");
    CHECK_THROWS_WITH(make("own_pert"), Contains("own_pert") && Contains("did you mean 'own_part'"));
    CHECK_THROWS_AS(make("own_pert"), ConfigError);
  }
  auto lists = list_parts();
  for (const auto& [kind, add, make] : kinds()) {
    INFO(kind);
    auto list = std::find_if(lists.begin(), lists.end(), [&](const PartList& each) { return each.kind == kind; });
    REQUIRE(list != lists.end());
    CHECK(std::count_if(list->parts.begin(), list->parts.end(),
                        [](const RegisteredPart& part) { return part.name == "own_part"; }) == 1);
    CHECK(list->parts.size() > 1);
  }
  CHECK(std::is_sorted(lists.begin(), lists.end(), [](const auto& a, const auto& b) { return a.kind < b.kind; }));
}

TEST_CASE("a program's own environment is detected before the built-in ones, and its format is a setting",
          "[registry]") {
  for (const auto& kind : kinds())
    if (kind.kind == "environment" || kind.kind == "checkpoint format") kind.add(true);
  auto env = std::make_shared<MapEnv>(std::map<std::string, std::string>{
      {"OWN_SCHEDULER", "1"}, {"TORCHELASTIC_RUN_ID", "x"}, {"RANK", "0"}, {"WORLD_SIZE", "1"}, {"LOCAL_RANK", "0"}});
  CHECK(detect_environment(env)->name() == "own");
  env->unset("OWN_SCHEDULER");
  CHECK(detect_environment(env)->name() == "torchelastic");
  Fabric fabric({.accelerator = "cpu", .checkpoint_io = "own_part"});
  CHECK(fabric.strategy()->checkpoint_io()->name() == "own");
}

TEST_CASE("parts are registered and looked up by several threads at once", "[registry]") {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([t] {
      for (int i = 0; i < 50; ++i) {
        auto name = "thread_" + std::to_string(t) + "_" + std::to_string(i);
        StrategyRegistry::instance().register_strategy(
            name, [](const Tree&) { return std::make_shared<SingleDeviceStrategy>(); });
        StrategyRegistry::instance().get(name);
        StrategyRegistry::instance().remove(name);
        list_parts();
      }
    });
  for (auto& thread : threads) thread.join();
  CHECK_FALSE(StrategyRegistry::instance().contains("thread_0_0"));
}

#include <fabric/helpers/finetuning/strategy_adapter.h>

#include <fabric/fabric.h>

#include "tests/support/finetuning_trace.h"
#include "tests/support/ranks.h"

using namespace finetuning_test;
using namespace fabric;

namespace {

/// A user's own: counts its hooks, keeps biases out of phase 0, and rewrites the checkpoint.
struct CountingAdapter : StrategyAdapter {
  std::string name() const override { return "counting"; }
  void before_init() override { ++calls["before_init"]; }
  void after_init(FinetuningScheduler&) override { ++calls["after_init"]; }
  void before_fit_start(FinetuningScheduler&) override { ++calls["before_fit_start"]; }
  void validate_monitor_metric(const std::string& metric) override { monitor = metric; }
  void validate_schedule(const FinetuningSchedule& schedule) override {
    phases = schedule.size();
    if (phases > 8) throw ConfigError("too many phases for this adapter");
  }
  FinetuningSchedule generate_schedule() const override {
    FinetuningSchedule schedule;
    schedule.phases.resize(2);
    for (const auto& name : parameters_for_schedule().names())
      schedule.phases[name.starts_with("model.3") ? 0 : 1].params.push_back(name);
    return schedule;
  }
  bool exec_phase(const Names& thawed) override {
    ++calls["exec_phase"];
    return StrategyAdapter::exec_phase(thawed);
  }
  void parameters_changed() override {
    ++calls["parameters_changed"];
    StrategyAdapter::parameters_changed();
  }
  void before_restore_model(Value& checkpoint) override {
    ++calls["before_restore_model"];
    if (fails) throw std::runtime_error("no luck");
    Value weights = checkpoint.at("model");
    checkpoint["weights"] = weights;
  }
  void before_restore_optimizer(Value&) override { ++calls["before_restore_optimizer"]; }
  void restore_model(const Value& state) override {
    ++calls["restore_model"];
    StrategyAdapter::restore_model(state);
  }
  std::map<std::string, int> calls;
  std::string monitor;
  std::size_t phases = 0;
  bool fails = false;
};

void register_counting() {
  StrategyAdapterRegistry::instance().register_adapter(
      "mine:Counting",
      [](const Tree& config) {
        auto adapter = std::make_shared<CountingAdapter>();
        for (const auto& [key, value] : config.as_map()) {
          if (key != "fails") throw ConfigError("unknown setting '" + key + "'");
          adapter->fails = value.as_bool();
        }
        return adapter;
      },
      /*override_existing=*/true);
}

std::string resolve_error(const AdapterRequest& request) {
  return error_of<ConfigError>([&] { resolve_strategy_adapter(request, FinetuningMessages(log::Level::off, false)); });
}

}  // namespace

TEST_CASE("adapters by name", "[finetuning][adapter]") {
  register_counting();
  for (const char* name : {"mine:Counting", "mine.Counting", "mine::Counting"})
    CHECK(resolve_strategy_adapter({.strategy = "ddp", .custom = {{"ddp", name}}}, {})->name() == "counting");
  StrategyAdapterRegistry::instance().register_adapter(
      "alias", [](const Tree&) { return std::make_shared<CountingAdapter>(); }, true);
  CHECK(resolve_strategy_adapter({.strategy = "fsdp", .custom = {{"fsdp", "alias"}}}, {})->name() == "counting");
  CHECK(contains(resolve_error({.strategy = "ddp", .custom = {{"ddp", "mine:"}}}), "no name of a strategy adapter"));
  CHECK(contains(resolve_error({.strategy = "ddp", .custom = {{"ddp", ""}}}), "no name of a strategy adapter"));
  CHECK(contains(resolve_error({.strategy = "ddp", .custom = {{"ddp", "mine..Counting"}}}), "no name"));
  CHECK(contains(resolve_error({.strategy = "ddp", .custom = {{"ddp", "mine.Countign"}}}),
                 "did you mean 'mine.Counting'"));
  CHECK(contains(resolve_error({.strategy = "ddp", .custom = {{"fsdp", "alias"}}}),
                 "names no adapter for the strategy in use"));
  CHECK(
      contains(resolve_error({.strategy = "ddp", .custom = {{"ddp", "mine:Counting"}}, .config = Tree::Map{{"x", 1}}}),
               "unknown setting 'x'"));
  CHECK(contains(error_of<ConfigError>([] {
                   StrategyAdapterRegistry::instance().register_adapter(
                       "base", [](const Tree&) { return std::make_shared<StrategyAdapter>(); });
                 }),
                 "registered already"));
  StrategyAdapterRegistry::instance().remove("alias");
  CHECK(contains(resolve_error({.strategy = "fsdp", .custom = {{"fsdp", "alias"}}}),
                 "no strategy adapter is registered"));
}

TEST_CASE("strategies without an adapter", "[finetuning][adapter]") {
  CHECK(contains(resolve_error({.strategy = "deepspeed"}), "not tested with strategy 'deepspeed'"));
  Said said;
  FinetuningMessages messages(log::Level::info, true);
  messages.set_sink(said.sink());
  CHECK(resolve_strategy_adapter({.strategy = "deepspeed", .allow_untested = true}, messages)->name() == "base");
  CHECK(said.warned("because of allow_untested"));
  auto& registry = StrategyRegistry::instance();
  for (const char* name :
       {"single_device", "ddp", "ddp_find_unused_parameters_true", "ddp_spawn", "ddp_fork", "ddp_notebook"})
    CHECK(registry.get(name)->finetuning_adapter() == "base");
  CHECK(registry.get("fsdp")->finetuning_adapter() == "fsdp");
  CHECK(registry.get("fsdp_cpu_offload")->finetuning_adapter() == "fsdp");
  CHECK(registry.get("dp")->finetuning_adapter().empty());
  CHECK(resolve_strategy_adapter({.strategy = "ddp", .built_in = "base"}, {})->name() == "base");
  register_counting();
  CHECK(resolve_strategy_adapter({.strategy = "theirs", .built_in = "mine:Counting"}, {})->name() == "counting");
}

TEST_CASE("a user's own adapter gets every hook", "[finetuning][adapter]") {
  register_counting();
  Script script;
  script.config.custom_strategy_adapters = {{"single_device", "mine:Counting"}};
  Run run(script);
  auto& adapter = dynamic_cast<CountingAdapter&>(run.schedule->strategy_adapter());
  CHECK(adapter.phases == 2);  // the schedule is the adapter's
  run.go();
  CHECK(run.depth.back() == 1);
  CHECK(adapter.monitor == "val_loss");
  CHECK(adapter.calls == std::map<std::string, int>{{"before_init", 1},
                                                    {"after_init", 1},
                                                    {"before_fit_start", 1},
                                                    {"exec_phase", 2},
                                                    {"parameters_changed", 2},
                                                    {"before_restore_model", 1},
                                                    {"before_restore_optimizer", 1},
                                                    {"restore_model", 1}});
  script.config.strategy_adapter_cfg = Tree::Map{{"fails", true}};
  Run failing(script);
  failing.go();
  CHECK(failing.said.warned("could not prepare the checkpoint: no luck"));
  CHECK(failing.depth.back() == 1);
}

TEST_CASE("with Fabric the caller's handle steps the new optimizer", "[finetuning][adapter]") {
  Folder folder;
  Fabric fabric({.accelerator = "cpu", .strategy = "single_device"});
  fabric.launch();
  Net raw;
  auto [net, optimizer] = fabric.setup(raw, std::make_shared<torch::optim::SGD>(raw->parameters(), 0.1));
  FinetuningScheduler::Config config;
  config.ft_schedule = tree(
      "0: {params: [model.3]}\n1: {params: [model.2], max_transition_epoch: 9, new_optimizer: {optimizer_init: "
      "{class_path: torch.optim.AdamW}}}\n2: {params: [model.1]}");
  config.restore_best = false;
  config.log_dir = folder.path.string();
  config.logging_level = "error";
  FinetuningScheduler schedule(config, net, optimizer);
  auto copy = optimizer;
  State before{{"optimizer", optimizer}};
  schedule.schedule_transition();
  CHECK(dynamic_cast<torch::optim::AdamW*>(optimizer.operator->()));
  CHECK(&*copy == &*optimizer);
  CHECK(before.at("optimizer").optimizer() == &*optimizer);  // a state that was made before, too
  at::Tensor weights = raw->named_parameters()["model.2.weight"].detach().clone();
  optimizer.zero_grad();
  fabric.backward(net(torch::randn({4, 3})).square().mean());
  optimizer.step();
  CHECK(!torch::equal(weights, raw->named_parameters()["model.2.weight"]));
  CHECK(optimizer->state().size() == 4);
  CHECK(error_of<MisuseError>([&] { optimizer.replace(nullptr); }) != "");
  // And a resumed run makes the class again.
  fabric.save(folder.file("c.safetensors"), {{"model", net}, {"optimizer", optimizer}, {"schedule", schedule}});
  Net other_raw;
  Fabric later({.accelerator = "cpu", .strategy = "single_device"});
  later.launch();
  auto [other, other_optimizer] =
      later.setup(other_raw, std::make_shared<torch::optim::SGD>(other_raw->parameters(), 0.1));
  FinetuningScheduler resumed(config, other, other_optimizer);
  State state{{"model", other}, {"optimizer", other_optimizer}, {"schedule", resumed}};
  later.load(folder.file("c.safetensors"), state);
  CHECK(dynamic_cast<torch::optim::AdamW*>(other_optimizer.operator->()));
  CHECK(other_optimizer->state().size() == 4);
  CHECK(resumed.curr_depth() == 1);
  CHECK(resumed.thawed_params().size() == 4);
}

#include <fabric/helpers/finetuning/fsdp_adapter.h>

#include <fabric/fabric.h>
#include <fabric/helpers/finetuning/finetuning_scheduler.h>
#include <fabric/strategies/fsdp.h>

#include "tests/support/catch.h"
#include "tests/support/finetuning_support.h"
#include "tests/support/finetuning_trace.h"

using namespace finetuning_test;
using namespace fabric;

namespace {

struct LayeredImpl : torch::nn::Module {
  LayeredImpl() {
    layers = register_module(
        "layers", torch::nn::ModuleList(torch::nn::Linear(4, 4), torch::nn::Linear(4, 4), torch::nn::Linear(4, 4)));
    head = register_module("head", torch::nn::Linear(4, 2));
  }
  at::Tensor forward(at::Tensor x) {
    for (const auto& layer : *layers) x = torch::tanh(layer->as<torch::nn::Linear>()->forward(x));
    return head(x);
  }
  torch::nn::ModuleList layers{nullptr};
  torch::nn::Linear head{nullptr};
};
TORCH_MODULE(Layered);

// A scheduler over a model under fsdp, and what it said. The error, where it refuses.
struct Tried {
  std::string error;
  std::vector<std::string> warnings;
  std::shared_ptr<ActivationCheckpointing> checkpointing;
  bool warned(const std::string& part) const {
    return std::any_of(warnings.begin(), warnings.end(),
                       [&](const auto& text) { return text.find(part) != std::string::npos; });
  }
};

Tried try_schedule(const std::string& schedule, const Tree& adapter_config, const Tree::Map& strategy = {}) {
  Fabric fabric({.accelerator = "cpu", .strategy = Choice("fsdp", strategy), .devices = 1});
  fabric.launch();
  auto [model, optimizer] = fabric.setup(Layered(), [](auto parameters) { return torch::optim::SGD(parameters, 0.1); });
  Folder folder;
  FinetuningScheduler::Config config;
  config.log_dir = folder.path.string();
  config.ft_schedule = tree(schedule);
  config.strategy_adapter_cfg = adapter_config;
  config.restore_best = false;
  Tried tried;
  FinetuningScheduler::Parts parts;
  parts.messages = [&](log::Level level, const std::string& text) {
    if (level == log::Level::warn) tried.warnings.push_back(text);
  };
  try {
    FinetuningScheduler scheduler(config, model, optimizer, {}, parts);
    auto& adapter = dynamic_cast<FsdpAdapter&>(scheduler.strategy_adapter());
    tried.checkpointing = adapter.activation_checkpointing();
    fabric.backward(model(torch::randn({3, 4})).sum());
    optimizer.step();
  } catch (const ConfigError& error) {
    tried.error = error.what();
  }
  return tried;
}

const char* const kByLayer = "{0: {params: [head]}, 1: {params: [layers.2]}}";

}  // namespace

TEST_CASE("phases over a model under fsdp take what they name", "[finetuning][adapter][fsdp]") {
  // Parameters of one unit and of one module in several phases, and some in none.
  CHECK(try_schedule("{0: {params: [head.weight]}, 1: {params: [head.bias, layers.1.bias]}}", Tree::Map{},
                     {{"auto_wrap_policy", "none"}})
            .error.empty());
  // What is left out of the units cannot be all that is trained.
  auto ignored = try_schedule(kByLayer, Tree::Map{}, {{"ignored", Tree::List{"head"}}});
  CHECK(contains(ignored.error, "phase 0 thaws nothing that the strategy shards"));
  CHECK(try_schedule("{0: {params: [head, layers.2]}}", Tree::Map{}, {{"ignored", Tree::List{"head"}}}).error.empty());
}

TEST_CASE("what is to be wrapped apart must be there, and be a unit", "[finetuning][adapter][fsdp]") {
  CHECK(contains(try_schedule(kByLayer, Tree::Map{{"awp_overrides", Tree::List{"layer.7"}}}).error, "layer.7"));
  CHECK(try_schedule(kByLayer, Tree::Map{{"awp_overrides", Tree::List{"head", "layers\\.[02]"}}}).warnings.empty());
  auto one = try_schedule(kByLayer, Tree::Map{{"awp_overrides", Tree::List{"head"}}}, {{"auto_wrap_policy", "none"}});
  CHECK(one.error.empty());
  CHECK(one.warned("head is no unit of its own"));
  CHECK(contains(try_schedule(kByLayer, Tree::Map{{"awp_override", Tree::List{"head"}}}).error, "awp_overrides"));
}

TEST_CASE("a plan for fsdp names modules, and may checkpoint them", "[finetuning][adapter][fsdp]") {
  auto plan = [](const Tree::Map& entries) { return Tree(Tree::Map{{"fsdp_plan", entries}}); };
  CHECK(contains(try_schedule(kByLayer, plan({{"layer.7", Tree()}})).error, "layer.7"));
  auto wrapped =
      try_schedule(kByLayer, plan({{"layers\\.[12]", Tree::Map{{"act_ckpt", "wrapped"}}}, {"head", Tree::Map{}}}));
  CHECK(wrapped.error.empty());
  CHECK(wrapped.warnings.empty());
  REQUIRE(wrapped.checkpointing);
  CHECK(wrapped.checkpointing->units() == std::vector<std::string>{"layers.1", "layers.2"});
  CHECK(try_schedule(kByLayer, plan({{"layers", Tree()}})).warned("ModuleList"));
  auto unknown = try_schedule(kByLayer, plan({{"head", Tree::Map{{"act_ckpt", "wraped"}}}}));
  CHECK(unknown.warned("act_ckpt 'wraped' is not known"));
  CHECK(unknown.checkpointing);
  CHECK(try_schedule(kByLayer, plan({{"head", Tree::Map{{"reshard_after_forward", true}}}}))
            .warned("settings of the strategy"));
  CHECK(contains(try_schedule(kByLayer, plan({{"head", Tree::Map{{"act_ckp", "wrapped"}}}})).error, "act_ckpt"));
  auto inner = try_schedule(kByLayer, plan({{"layers.1", Tree()}}), {{"auto_wrap_policy", "none"}});
  CHECK(inner.warned("layers.1 is no unit of its own"));
  auto defaults = Tree::Map{{"fsdp_default_kwargs", Tree::Map{{"act_ckpt", "composable"}}},
                            {"fsdp_plan", Tree::Map{{"layers.0", Tree()}}}};
  CHECK(try_schedule(kByLayer, defaults).checkpointing);
}

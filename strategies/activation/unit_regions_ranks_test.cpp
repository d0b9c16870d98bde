// Checkpointed training under the strategies and precisions is bitwise what it is without.
#include <fabric/fabric.h>
#include <fabric/strategies/activation_checkpointing.h>
#include <fabric/strategies/summon.h>

#include "strategies/activation/unit_regions_test_support.h"
#include "tests/support/ranks.h"

using fabric::Choice;
using fabric::Fabric;
using fabric::Tree;
using namespace regions_test;

namespace {

struct Trained {
  std::vector<double> losses;
  std::vector<at::Tensor> gradients, parameters;
};

Trained train(Fabric& fabric, const std::function<void(const fabric::FabricModule<TextImpl>&)>& prepare) {
  torch::manual_seed(5);
  Text net;
  auto [model, optimizer] = fabric.setup(net, [](auto parameters) { return torch::optim::AdamW(parameters, 0.01); });
  prepare(model);
  Trained out;
  for (int step = 0; step < 4; ++step) {
    optimizer.zero_grad();
    for (int part = 0; part < 2; ++part) {
      auto local = fabric.no_backward_sync(model, part == 0);
      auto ids = ids_of(2 * step + part, fabric.global_rank());
      auto loss = loss_of(model(ids), ids);
      fabric.backward(loss);
      out.losses.push_back(loss.template item<double>());
    }
    fabric.clip_gradients(model, optimizer, {.max_norm = 1.0});
    if (step == 3)
      for (const auto& parameter : model->parameters()) out.gradients.push_back(parameter.grad().clone());
    optimizer.step();
  }
  auto whole = fabric::summon(model);
  for (const auto& parameter : model->parameters()) out.parameters.push_back(parameter.detach().clone());
  return out;
}

Trained train(const Fabric::Config& config, const Config& checkpointing) {
  Fabric fabric(config);
  fabric.launch();
  return train(fabric, [&](const auto& model) {
    if (config.strategy.name != "fsdp") fabric::apply_activation_checkpointing(model, checkpointing);
  });
}

bool are_equal(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (!torch::equal(a[i], b[i])) return false;
  return true;
}

void check_all_modes(int ranks) {
  at::set_num_threads(1);
  for (const std::string strategy : {"ddp", "fsdp"})
    for (const char* precision : {"32-true", "bf16-mixed"}) {
      auto config = [&](const std::string& mode) {
        Fabric::Config config{.accelerator = "cpu", .strategy = strategy, .devices = ranks, .precision = precision};
        if (strategy == "fsdp")
          config.strategy = Choice(strategy, Tree::Map{{"activation_checkpointing", Tree::Map{{"mode", mode}}}});
        return config;
      };
      auto expected = train(config("none"), {.mode = "none"});
      for (const char* mode : {"full", "selective"}) {
        auto found = train(config(mode), {.mode = mode});
        const std::string what = strategy + ", " + precision + ", " + mode;
        if (found.losses != expected.losses) throw std::runtime_error(what + ": losses differ");
        if (!are_equal(found.gradients, expected.gradients)) throw std::runtime_error(what + ": gradients differ");
        if (!are_equal(found.parameters, expected.parameters)) throw std::runtime_error(what + ": parameters differ");
      }
    }
}

}  // namespace

RANKS_TEST("checkpointed units train bitwise alike under ddp and fsdp", "[activation]", 2) { check_all_modes(2); }

TEST_CASE("checkpointed units train bitwise alike in one process", "[activation]") {
  at::set_num_threads(1);
  for (const char* precision : {"32-true", "bf16-mixed", "bf16-true"}) {
    Fabric::Config config{.accelerator = "cpu", .strategy = "single_device", .precision = precision};
    auto expected = train(config, {.mode = "none"});
    for (const char* mode : {"full", "selective"}) {
      auto found = train(config, {.mode = mode});
      CHECK(found.losses == expected.losses);
      CHECK(are_equal(found.parameters, expected.parameters));
    }
  }
}

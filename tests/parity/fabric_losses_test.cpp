// The loop of record_fabric_losses.py in C++: same seeds, same losses, step by step.

#include <torch/torch.h>

#include <fstream>
#include <sstream>

#include <fabric/base/tree_io.h>
#include <fabric/fabric.h>

#include "tests/support/group_of_ranks.h"

namespace {

constexpr int kSteps = 12;

struct Recorded {
  std::string optimizer, precision, strategy;
  int accumulate = 1;
  double clip = 0;
  std::vector<std::vector<double>> losses;  // by rank
};

std::vector<Recorded> recorded(const std::string& strategy) {
  std::ifstream file(FABRIC_PARITY_DATA "/fabric_losses.json");
  std::stringstream text;
  text << file.rdbuf();
  auto tree = fabric::read_json(text.str());
  std::vector<Recorded> runs;
  for (const auto& entry : tree.at("runs").as_list()) {
    if (entry.at("strategy").as_string() != strategy) continue;
    Recorded run{entry.at("optimizer").as_string(),
                 entry.at("precision").as_string(),
                 strategy,
                 static_cast<int>(entry.at("accumulate").as_int()),
                 entry.at("clip").as_double(),
                 {}};
    for (const auto& rank : entry.at("losses").as_list()) {
      auto& losses = run.losses.emplace_back();
      for (const auto& loss : rank.as_list()) losses.push_back(loss.as_double());
    }
    runs.push_back(run);
  }
  return runs;
}

// The largest difference to the recorded losses of this rank.
double train(const Recorded& run) {
  torch::set_num_threads(1);
  fabric::Fabric fabric({.accelerator = "cpu",
                         .strategy = run.strategy == "ddp" ? ranks::ddp_from_env() : fabric::Choice("single_device"),
                         .devices = run.strategy == "ddp" ? 2 : 1,
                         .precision = run.precision});
  fabric.launch();
  const char* backend = std::getenv("FABRIC_TEST_BACKEND");
  if (run.strategy == "ddp" && backend) RANK_CHECK(fabric.strategy()->process_group().backend() == backend);
  torch::manual_seed(7);
  torch::nn::Sequential net;  // one layer after the other: the order of a constructor's arguments is the compiler's
  net->push_back(torch::nn::Linear(32, 64));
  net->push_back(torch::nn::ReLU());
  net->push_back(torch::nn::Linear(64, 10));
  auto [model, optimizer] = fabric.setup(net, [&](auto parameters) -> std::unique_ptr<torch::optim::Optimizer> {
    if (run.optimizer == "adamw") return std::make_unique<torch::optim::AdamW>(parameters, 1e-2);
    return std::make_unique<torch::optim::SGD>(parameters, torch::optim::SGDOptions(0.1).momentum(0.9));
  });
  torch::manual_seed(100 + fabric.global_rank());
  double worst = 0;
  for (int step = 0; step < kSteps * run.accumulate; ++step) {
    auto x = torch::randn({16, 32});
    auto y = torch::randint(0, 10, {16});
    bool last = (step + 1) % run.accumulate == 0;
    {
      auto no_sync = fabric.no_backward_sync(model, !last);
      auto loss = torch::nn::functional::cross_entropy(model(x), y);
      fabric.backward(loss / run.accumulate);
      worst = std::max(worst, std::abs(loss.item<double>() - run.losses.at(fabric.global_rank()).at(step)));
    }
    if (!last) continue;
    if (run.clip > 0) fabric.clip_gradients(model, optimizer, {.max_norm = run.clip});
    optimizer.step();
    optimizer.zero_grad();
  }
  return worst;
}

}  // namespace

TEST_CASE("one process trains like Lightning Fabric", "[parity]") {
  auto runs = recorded("single");
  REQUIRE(runs.size() == 20);
  for (const auto& run : runs) {
    INFO(run.optimizer << ' ' << run.precision << ", accumulate " << run.accumulate << ", clip " << run.clip);
    CHECK(train(run) <= 1e-6);
  }
}

ALL_BACKENDS_TEST("two ranks train like Lightning Fabric's ddp", "[parity]", 2) {
  auto runs = recorded("ddp");
  RANK_CHECK(runs.size() == 20);
  for (const auto& run : runs) {
    double worst = train(run);
    if (worst > 1e-6)
      ranks::fail(__FILE__, __LINE__,
                  run.optimizer + ' ' + run.precision + ", accumulate " + std::to_string(run.accumulate) + ", clip " +
                      std::to_string(run.clip) + ": off by " + std::to_string(worst));
  }
}

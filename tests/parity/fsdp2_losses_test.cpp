// The loop of record_fsdp2.py in C++: same weights, same batches, the losses of PyTorch's FSDP2 over Gloo.

#include <torch/torch.h>

#include <fstream>
#include <sstream>

#include <fabric/base/tree_io.h>
#include <fabric/fabric.h>

#include "tests/support/ranks.h"

namespace {

// The largest difference to what this rank recorded.
double train_as_fsdp2(const fabric::Tree& run, int rank) {
  using fabric::Tree;
  const bool bf16 = run.at("bf16").as_bool();
  const auto accumulate = run.at("accumulate").as_int();
  Tree::Map settings{{"sharding_strategy", run.at("reshard").as_bool() ? "FULL_SHARD" : "SHARD_GRAD_OP"}};
  if (bf16) settings.append("mixed_precision", Tree::Map{{"param_dtype", "bf16"}, {"reduce_dtype", "fp32"}});
  fabric::Fabric fabric({.accelerator = "cpu", .strategy = fabric::Choice("fsdp", settings), .devices = 2});
  fabric.launch();
  torch::manual_seed(7);
  torch::nn::Sequential net;
  net->push_back(torch::nn::Linear(32, 65));
  net->push_back(torch::nn::ReLU());
  net->push_back(torch::nn::Linear(65, 10));
  auto [model, optimizer] = fabric.setup(
      net, [](auto parameters) { return torch::optim::AdamW(parameters, torch::optim::AdamWOptions(1e-2)); });
  torch::manual_seed(100 + rank);
  double worst = 0;
  const auto& recorded = run.at("losses").as_list().at(static_cast<std::size_t>(rank)).as_list();
  for (std::size_t step = 0; step < recorded.size(); ++step) {
    auto x = torch::randn({16, 32});
    auto y = torch::randint(0, 10, {16});
    const bool last = (static_cast<std::int64_t>(step) + 1) % accumulate == 0;
    {
      auto local = fabric.no_backward_sync(model, !last);
      auto loss = torch::nn::functional::cross_entropy(model(x).to(at::kFloat), y);
      fabric.backward(loss / accumulate);
      worst = std::max(worst, std::abs(loss.template item<double>() - recorded[step].as_double()));
    }
    if (!last) continue;
    fabric.clip_gradients(model, optimizer, {.max_norm = 0.5});
    optimizer.step();
    optimizer.zero_grad();
  }
  return worst;
}

}  // namespace

RANKS_TEST("fsdp trains like PyTorch's FSDP2 over Gloo", "[parity][fsdp]", 2) {
  torch::set_num_threads(1);
  std::ifstream file(FABRIC_PARITY_DATA "/fsdp2_losses.json");
  std::stringstream text;
  text << file.rdbuf();
  auto tree = fabric::read_json(text.str());
  for (const auto& run : tree.at("runs").as_list()) {
    double worst = train_as_fsdp2(run, rank);
    double bound = run.at("bf16").as_bool() ? 1e-2 : 1e-5;
    if (!(worst < bound))
      throw std::runtime_error("losses differ by " + std::to_string(worst / bound) + " times the bound");
  }
}

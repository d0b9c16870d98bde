#include <fabric/strategies/model_averaging.h>

#include "strategies/ddp/ddp_test_support.h"

using namespace ddp_test;

TEST_CASE("model averaging checks its settings", "[ddp][averaging]") {
  auto group = fabric::ProcessGroup::single();
  CHECK_THROWS_AS(fabric::ModelAverager(group, {.period = 0}), fabric::ConfigError);
  CHECK_THROWS_AS(fabric::ModelAverager(group, {.period = 1, .warmup_steps = -1}), fabric::ConfigError);
  fabric::ModelAverager averager(group, {.period = 2, .warmup_steps = 1});
  std::vector<bool> averaged;
  for (int step = 0; step < 6; ++step) averaged.push_back(averager.step({}));
  CHECK(averaged == std::vector<bool>{false, false, true, false, true, false});
  CHECK_THROWS_AS(fabric::DDPStrategy({.model_averaging_warmup = 3}), fabric::ConfigError);
}

RANKS_TEST("average_parameters takes mixed types and layouts", "[ddp][averaging]", 2) {
  auto group = join_group();
  auto wide = torch::arange(6, at::kDouble).view({2, 3}).t() * (rank + 1);
  auto small = torch::ones({4}) * rank, scalar = torch::tensor(2.0 * rank, at::kDouble);
  auto param = torch::full({3}, static_cast<float>(rank)).requires_grad_();
  fabric::average_parameters({wide, small, scalar, param, at::Tensor()}, group);
  RANK_CHECK(torch::allclose(wide, torch::arange(6, at::kDouble).view({2, 3}).t() * 1.5));
  RANK_CHECK(small[0].item<float>() == 0.5f && scalar.item<double>() == 1.0);
  RANK_CHECK(param[2].item<float>() == 0.5f && param.requires_grad() && param.is_leaf());
}

RANKS_TEST("ddp averages models every few steps after the warm-up", "[ddp][averaging]", 2) {
  auto group = join_group();
  auto strategy = make_ddp(group, {.model_averaging_period = 3, .model_averaging_warmup = 2});
  Net net;
  auto model = wrap(strategy, net);
  torch::optim::SGD optimizer(net->parameters(), 0.1);
  torch::manual_seed(3 + rank);
  std::vector<bool> equal;
  for (int step = 1; step <= 8; ++step) {
    strategy->zero_grad(optimizer, true);
    strategy->backward(model(torch::randn({4, 6}, at::kDouble)).pow(2).sum(), nullptr);
    strategy->optimizer_step(optimizer, nullptr);
    equal.push_back(equal_on_all_ranks(*net, group));
  }
  RANK_CHECK(equal == std::vector<bool>({true, true, false, false, true, false, false, true}));
}

RANKS_TEST("a model averager works without ddp", "[ddp][averaging]", 2) {
  auto group = join_group();
  auto param = torch::tensor(static_cast<double>(rank), at::kDouble);
  fabric::ModelAverager averager(group, {.period = 2});
  RANK_CHECK(!averager.step({param}) && param.item<double>() == rank);
  RANK_CHECK(averager.step({param}) && param.item<double>() == 0.5);
  averager.set_steps(5);
  RANK_CHECK(averager.steps() == 5 && averager.step({param}));
}

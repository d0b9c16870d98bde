#include <fabric/helpers/lr/composite_lr.h>

#include <torch/torch.h>

#include <fabric/helpers/lr/lr_schedulers.h>

#include "fabric/helpers/lr/lr_test_support.h"
#include "tests/support/catch.h"

using namespace fabric;
using namespace lr_test;
using Catch::Contains;

TEST_CASE("Schedulers that work together must belong together", "[lr]") {
  auto first = one_group();
  auto second = one_group();
  auto steps = std::make_shared<StepLR>(first, StepLR::Config{.step_size = 3});
  auto plateau = std::make_shared<ReduceLROnPlateau>(first);
  auto stranger = std::make_shared<StepLR>(second, StepLR::Config{.step_size = 3});
  CHECK_THROWS_WITH(SequentialLR(first, {}, {}), Contains("at least one"));
  CHECK_THROWS_WITH(ChainedScheduler({}), Contains("at least one"));
  CHECK_THROWS_WITH(SequentialLR(first, {steps, steps}, {}), Contains("2 schedulers and 0 milestones"));
  CHECK_THROWS_WITH(SequentialLR(first, {steps, steps, steps}, {5, 2}), Contains("must rise"));
  CHECK_THROWS_WITH(SequentialLR(first, {steps, plateau}, {2}), Contains("scheduler 1 is a ReduceLROnPlateau"));
  CHECK_THROWS_WITH(SequentialLR(first, {steps, nullptr}, {2}), Contains("empty pointer"));
  CHECK_THROWS_WITH(ChainedScheduler({steps, stranger}), Contains("another optimizer"));
  CHECK_THROWS_WITH(
      SequentialLR(first, {steps, std::make_shared<ChainedScheduler>(CompositeLR::Schedulers{steps})}, {2}),
      Contains("only be the first"));
}

TEST_CASE("A sequence within a sequence runs in its turn", "[lr]") {
  auto optimizer = one_group(1);
  auto constant = [&](double factor) {
    return std::make_shared<ConstantLR>(optimizer, ConstantLR::Config{.factor = factor, .total_iters = 100});
  };
  auto inner = std::make_shared<SequentialLR>(optimizer, CompositeLR::Schedulers{constant(0.5), constant(0.25)},
                                              std::vector<std::int64_t>{2});
  SequentialLR outer(optimizer, {constant(0.1), inner}, {3});
  std::vector<double> lrs = lrs_of(optimizer);
  for (int i = 0; i < 6; ++i) {
    outer.step();
    lrs.push_back(get_lr(optimizer.param_groups()[0]));
  }
  CHECK(lrs == std::vector<double>{0.1, 0.1, 0.1, 0.5, 0.5, 0.25, 0.25});
}

TEST_CASE("Schedulers that work together grow together", "[lr]") {
  auto optimizer = one_group(1);
  ChainedScheduler chain({std::make_shared<ExponentialLR>(optimizer, ExponentialLR::Config{.gamma = 0.5}),
                          std::make_shared<StepLR>(optimizer, StepLR::Config{.step_size = 2, .gamma = 0.1})});
  chain.step();
  add_group(optimizer, 0.1);
  chain.grow(0.1);
  chain.step();
  CHECK(get_lr(optimizer.param_groups()[0]) == Approx(0.025));
  CHECK(get_lr(optimizer.param_groups()[1]) == Approx(0.005));
  CHECK(chain.schedulers()[1]->base_lrs() == std::vector<double>{1, 0.1});
  chain.shrink(1);
  optimizer.param_groups().pop_back();
  chain.step();
  CHECK(get_lr(optimizer.param_groups()[0]) == Approx(0.0125));
  chain.set_base_lrs({2});
  CHECK(chain.schedulers()[0]->base_lrs() == std::vector<double>{2});
  CHECK_THROWS_AS(chain.set_base_lrs({1, 2}), MisuseError);
}

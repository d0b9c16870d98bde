#include <torch/torch.h>

#include <cmath>

#include <fabric/fabric.h>
#include <fabric/helpers/lr/lr_schedulers.h>

#include "fabric/helpers/lr/lr_test_support.h"
#include "tests/support/catch.h"

using namespace fabric;
using namespace lr_test;
using Catch::Contains;

TEST_CASE("Making a scheduler does its first step and keeps where it began", "[lr]") {
  auto optimizer = two_groups();
  ConstantLR scheduler(optimizer, {.factor = 0.5});
  CHECK(scheduler.last_epoch() == 0);
  CHECK(lrs_of(optimizer) == std::vector<double>{0.05, 0.005});
  CHECK(scheduler.last_lrs() == lrs_of(optimizer));
  CHECK(scheduler.initial_lrs() == std::vector<double>{0.1, 0.01});
  CHECK(scheduler.base_lrs() == scheduler.initial_lrs());
}

TEST_CASE("Schedulers of one optimizer share the initial learning rates", "[lr]") {
  auto optimizer = one_group();
  ConstantLR first(optimizer, {.factor = 0.5});
  CosineAnnealingLR second(optimizer, {.T_max = 10});
  CHECK(second.base_lrs() == std::vector<double>{0.1});
  CHECK(shared_initial_lrs(optimizer)->at(0) == 0.1);
  second.set_initial_lrs({0.7});
  CHECK(first.initial_lrs() == std::vector<double>{0.7});
}

TEST_CASE("When the last scheduler is gone, the optimizer begins anew", "[lr]") {
  auto optimizer = one_group();
  { ConstantLR scheduler(optimizer, {.factor = 0.5}); }
  CHECK(shared_initial_lrs(optimizer)->empty());
  StepLR next(optimizer, {.step_size = 1});
  CHECK(next.initial_lrs() == std::vector<double>{0.05});
}

TEST_CASE("last_epoch resumes, and needs to know where it began", "[lr]") {
  auto optimizer = one_group();
  CHECK_THROWS_WITH(StepLR(optimizer, {.step_size = 3, .last_epoch = 4}), Contains("no initial learning rate"));
  CHECK(get_lr(optimizer.param_groups()[0]) == 0.1);
  auto initial = shared_initial_lrs(optimizer);
  *initial = {1.0};
  LambdaLR scheduler(
      optimizer, [](std::int64_t epoch) { return 1.0 / static_cast<double>(epoch); }, 4);
  CHECK(scheduler.last_epoch() == 5);
  CHECK(get_lr(optimizer.param_groups()[0]) == 0.2);
}

TEST_CASE("A group that is added must be told", "[lr]") {
  auto optimizer = one_group();
  StepLR scheduler(optimizer, {.step_size = 1, .gamma = 0.5});
  add_group(optimizer, 1e-3);
  CHECK_THROWS_WITH(scheduler.step(), Contains("knows of 1 groups, the optimizer has 2") && Contains("grow("));
  scheduler.grow(1e-3);
  scheduler.step();
  CHECK(lrs_of(optimizer) == std::vector<double>{0.05, 5e-4});
  CHECK(scheduler.base_lrs() == std::vector<double>{0.1, 1e-3});
  CHECK(scheduler.initial_lrs() == std::vector<double>{0.1, 1e-3});
  optimizer.param_groups().pop_back();
  CHECK_THROWS_AS(scheduler.step(), MisuseError);
  scheduler.shrink(1);
  scheduler.step();
  CHECK(lrs_of(optimizer) == std::vector<double>{0.025});
}

TEST_CASE("Two schedulers of one optimizer both grow", "[lr]") {
  auto optimizer = one_group();
  StepLR first(optimizer, {.step_size = 5});
  ExponentialLR second(optimizer, {.gamma = 0.5});
  add_group(optimizer, 1e-3);
  first.grow(1e-3);
  second.grow(1e-3);
  CHECK(first.initial_lrs() == std::vector<double>{0.1, 1e-3});
  first.step();
  second.step();
  CHECK(lrs_of(optimizer) == std::vector<double>{0.05, 5e-4});
}

TEST_CASE("Functions are copied for new groups and may differ by group", "[lr]") {
  auto optimizer = two_groups();
  auto constant = [](double value) { return LRFunction([value](std::int64_t) { return value; }); };
  LambdaLR scheduler(optimizer, std::vector<LRFunction>{constant(1), constant(0.5)});
  add_group(optimizer, 1);
  scheduler.grow(1);
  scheduler.step();
  CHECK(lrs_of(optimizer) == std::vector<double>{0.1, 0.005, 0.5});
  CHECK_THROWS_WITH(LambdaLR(optimizer, std::vector<LRFunction>{constant(1)}), Contains("expected 3 lr_lambdas"));
  CHECK_THROWS_WITH(MultiplicativeLR(optimizer, LRFunction()), Contains("empty function"));
}

TEST_CASE("A function that throws leaves everything as it was", "[lr]") {
  auto optimizer = two_groups();
  int calls = 0;
  LambdaLR scheduler(optimizer, [&](std::int64_t) -> double {
    if (++calls == 4) throw std::runtime_error("no factor");
    return calls > 2 ? 0.5 : 1;
  });
  CHECK_THROWS_WITH(scheduler.step(), Contains("no factor"));
  CHECK(scheduler.last_epoch() == 0);
  CHECK(lrs_of(optimizer) == std::vector<double>{0.1, 0.01});
  scheduler.step();
  CHECK(scheduler.last_epoch() == 1);
}

TEST_CASE("ReduceLROnPlateau needs its metric, others ignore it", "[lr]") {
  auto optimizer = one_group();
  ReduceLROnPlateau plateau(optimizer, {.factor = 0.5, .patience = 0, .min_lr = 0.04});
  CHECK(plateau.needs_metric());
  CHECK_THROWS_WITH(plateau.step(), Contains("step(metric)"));
  plateau.step(1.0);
  plateau.step(2.0);
  CHECK(lrs_of(optimizer) == std::vector<double>{0.05});
  plateau.step(std::nan(""));
  CHECK(plateau.last_lrs() == std::vector<double>{0.04});
  CHECK(plateau.best() == 1);
  add_group(optimizer, 1.0);
  plateau.grow(1.0);
  CHECK(plateau.min_lrs() == std::vector<double>{0.04, 0.04});
  plateau.step(3.0);
  CHECK(lrs_of(optimizer) == std::vector<double>{0.04, 0.5});

  auto other = one_group();
  StepLR steps(other, {.step_size = 1});
  CHECK_FALSE(steps.needs_metric());
  steps.step(17.0);
  CHECK(get_lr(other.param_groups()[0]) == Approx(0.01));
}

TEST_CASE("Restarting is as making it anew", "[lr]") {
  auto optimizer = two_groups();
  ReduceLROnPlateau plateau(optimizer, {.patience = 0, .min_lr = {1e-4, 1e-5}});
  plateau.step(1.0);
  plateau.step(2.0);
  optimizer.param_groups().pop_back();
  set_lr(optimizer.param_groups()[0], 0.3);
  plateau.restart();
  CHECK(plateau.last_epoch() == 0);
  CHECK(plateau.initial_lrs() == std::vector<double>{0.3});
  CHECK(plateau.min_lrs() == std::vector<double>{1e-4});
  CHECK(std::isinf(plateau.best()));

  auto second = one_group();
  SequentialLR sequence(second,
                        {std::make_shared<ConstantLR>(second, ConstantLR::Config{.factor = 0.5, .total_iters = 2}),
                         std::make_shared<CosineAnnealingLR>(second, CosineAnnealingLR::Config{.T_max = 4})},
                        {2});
  step(sequence, 5);
  set_lr(second.param_groups()[0], 1);
  add_group(second, 0.1);
  sequence.restart();
  CHECK(lrs_of(second) == std::vector<double>{0.5, 0.05});
  step(sequence, 2);
  CHECK(lrs_of(second) == std::vector<double>{1, 0.1});
}

TEST_CASE("Rebinding moves a scheduler to another optimizer", "[lr]") {
  auto optimizer = one_group();
  StepLR scheduler(optimizer, {.step_size = 2, .gamma = 0.1});
  scheduler.step();
  torch::optim::AdamW next({parameter()}, torch::optim::AdamWOptions(0.5));
  scheduler.rebind(next);
  CHECK(get_lr(next.param_groups()[0]) == 0.5);
  CHECK(&scheduler.optimizer() == &next);
  scheduler.step();
  CHECK(get_lr(next.param_groups()[0]) == Approx(0.05));
  CHECK(get_lr(optimizer.param_groups()[0]) == 0.1);
  CHECK(shared_initial_lrs(next)->at(0) == 0.1);
  OneCycleLR cycle(next, {.max_lr = 0.1, .total_steps = 9});
  torch::optim::Adagrad without({parameter()}, torch::optim::AdagradOptions(0.1));
  CHECK_THROWS_WITH(cycle.rebind(without), Contains("cycle_momentum"));
  CHECK(&cycle.optimizer() == &next);
}

TEST_CASE("The state of another class is refused, damage changes nothing", "[lr]") {
  auto optimizer = one_group();
  auto other = one_group();
  StepLR steps(optimizer, {.step_size = 2});
  CosineAnnealingWarmRestarts cosine(other, {.T_0 = 3});
  step(cosine, 2);
  CHECK_THROWS_WITH(cosine.load_state_dict(steps.state_dict()),
                    Contains("CosineAnnealingWarmRestarts cannot go on from the state of StepLR"));
  CHECK_THROWS_AS(cosine.load_state_dict(Value::Map{}), CheckpointKeyError);
  for (const char* key : {"last_epoch", "base_lrs", "initial_lrs", "config", "T_cur"}) {
    Value damaged = CosineAnnealingWarmRestarts(other, {.T_0 = 7}).state_dict();
    damaged.as_map().erase(key);
    CHECK_THROWS_WITH(cosine.load_state_dict(damaged), Contains(key));
    CHECK(cosine.last_epoch() == 2);
    CHECK(cosine.config().T_0 == 3);
  }
}

TEST_CASE("A state brings the settings and the number of groups with it", "[lr]") {
  auto optimizer = one_group();
  auto other = one_group();
  StepLR saved(optimizer, {.step_size = 2, .gamma = 0.5});
  add_group(optimizer, 1e-3);
  saved.grow(1e-3);
  saved.step();
  StepLR loaded(other, {.step_size = 9});
  loaded.load_state_dict(saved.state_dict());
  CHECK(loaded.config().gamma == 0.5);
  CHECK_THROWS_AS(loaded.step(), MisuseError);
  add_group(other, 1e-3);
  loaded.step();
  CHECK(lrs_of(other) == std::vector<double>{0.05, 5e-4});
}

TEST_CASE("Functions are not part of the state, which says so", "[lr]") {
  auto optimizer = one_group();
  LambdaLR scheduler(optimizer, [](std::int64_t) { return 1.0; });
  CHECK_THAT(scheduler.state_dict().at("lr_lambdas").as_string(), Contains("not saved"));
  CyclicLR cycle(optimizer, {.base_lr = 0.1, .max_lr = 1, .scale_fn = [](double) { return 1.0; }});
  CHECK_THAT(cycle.state_dict().at("scale_fn").as_string(), Contains("not saved"));
  CyclicLR without(optimizer, {.base_lr = 0.1, .max_lr = 1});
  CHECK_THROWS_WITH(without.load_state_dict(cycle.state_dict()), Contains("scale_fn"));
}

TEST_CASE("Schedulers are saved with a checkpoint", "[lr]") {
  auto path = std::filesystem::temp_directory_path() / ("fabric_lr_" + std::to_string(getpid()) + ".safetensors");
  Fabric fabric({.accelerator = "cpu", .devices = 1});
  auto optimizer = one_group();
  auto other = one_group();
  ReduceLROnPlateau plateau(optimizer), loaded(other);  // its best is still infinity
  CosineAnnealingLR cosine(optimizer, {.T_max = 9}), again(other, {.T_max = 9});
  step(cosine, 4);
  fabric.save(path, {{"optimizer", optimizer}, {"plateau", plateau}, {"cosine", cosine}});
  State state = {{"optimizer", other}, {"plateau", loaded}, {"cosine", again}};
  fabric.load(path, state);
  std::filesystem::remove(path);
  CHECK(std::isinf(loaded.best()));
  cosine.step();
  again.step();
  CHECK(lrs_of(optimizer) == lrs_of(other));
}

TEST_CASE("Warm restarts go on from any epoch in the round that it lies in", "[lr]") {
  for (int mult : {1, 2, 3}) {
    auto whole = one_group();
    CosineAnnealingWarmRestarts scheduler(whole, {.T_0 = 3, .T_mult = mult});
    for (int epoch = 0; epoch < 250; ++epoch) {
      scheduler.step();  // to the epoch after
      if (epoch > 45 && epoch % 9 != 2) continue;
      INFO("T_mult " << mult << ", last_epoch " << epoch);
      auto resumed = one_group();
      auto initial_lrs = shared_initial_lrs(resumed);  // which lives as long as somebody holds it
      initial_lrs->assign({0.1});
      CosineAnnealingWarmRestarts later(resumed, {.T_0 = 3, .T_mult = mult, .last_epoch = epoch});
      CHECK(get_lr(resumed.param_groups()[0]) == Approx(get_lr(whole.param_groups()[0])).margin(1e-12));
      auto jumped = one_group();
      CosineAnnealingWarmRestarts any(jumped, {.T_0 = 3, .T_mult = mult});
      any.step_to(epoch + 1);
      CHECK(get_lr(jumped.param_groups()[0]) == Approx(get_lr(whole.param_groups()[0])).margin(1e-12));
    }
  }
}

TEST_CASE("Settings that cannot be are refused", "[lr]") {
  auto sgd = two_groups();
  torch::optim::Adagrad adagrad({parameter()}, torch::optim::AdagradOptions(0.1));
  CHECK_THROWS_WITH(StepLR(sgd, {}), Contains("step_size must be given"));
  CHECK_THROWS_WITH(StepLR(sgd, {.step_size = 0}), Contains("1 or more"));
  CHECK_THROWS_WITH(ConstantLR(sgd, {.factor = 1.5}), Contains("between 0 and 1"));
  CHECK_THROWS_WITH(LinearLR(sgd, {.start_factor = 0}), Contains("start_factor"));
  CHECK_THROWS_WITH(LinearLR(sgd, {.end_factor = -1}), Contains("end_factor"));
  CHECK_THROWS_WITH(LinearLR(sgd, {.total_iters = 0}), Contains("total_iters"));
  CHECK_THROWS_WITH(ExponentialLR(sgd, {}), Contains("gamma must be given"));
  CHECK_THROWS_WITH(PolynomialLR(sgd, {.total_iters = 0}), Contains("total_iters"));
  CHECK_THROWS_WITH(CosineAnnealingLR(sgd, {}), Contains("T_max must be given"));
  CHECK_THROWS_WITH(CosineAnnealingWarmRestarts(sgd, {.T_0 = 0}), Contains("T_0 must be 1 or more"));
  CHECK_THROWS_WITH(CosineAnnealingWarmRestarts(sgd, {.T_0 = 1, .T_mult = 0}), Contains("T_mult"));
  CHECK_THROWS_WITH(CosineAnnealingWarmRestarts(sgd, {.T_0 = 1}).step_to(-1), Contains("0 or more"));
  CHECK_THROWS_WITH(ReduceLROnPlateau(sgd, {.factor = 1}), Contains("below 1"));
  CHECK_THROWS_WITH(ReduceLROnPlateau(sgd, {.mode = "mean"}), Contains("'mean'"));
  CHECK_THROWS_WITH(ReduceLROnPlateau(sgd, {.threshold_mode = "x"}), Contains("'rel' or 'abs'"));
  CHECK_THROWS_WITH(ReduceLROnPlateau(sgd, {.min_lr = {1, 2, 3}}), Contains("min_lr") && Contains("2"));
  CHECK_THROWS_WITH(CyclicLR(sgd, {.max_lr = 1}), Contains("base_lr and max_lr"));
  CHECK_THROWS_WITH(CyclicLR(sgd, {.base_lr = 0, .max_lr = 1, .mode = "square"}), Contains("'square'"));
  CHECK_THROWS_WITH(CyclicLR(sgd, {.base_lr = {0, 0, 0}, .max_lr = 1}), Contains("given 3"));
  CHECK_THROWS_WITH(CyclicLR(adagrad, {.base_lr = 0, .max_lr = 1}), Contains("momentum or betas"));
  CHECK_THROWS_WITH(OneCycleLR(sgd, {.total_steps = 5}), Contains("max_lr must be given"));
  CHECK_THROWS_WITH(OneCycleLR(sgd, {.max_lr = 1, .epochs = 5}), Contains("steps_per_epoch"));
  CHECK_THROWS_WITH(OneCycleLR(sgd, {.max_lr = 1, .total_steps = 0}), Contains("total_steps"));
  CHECK_THROWS_WITH(OneCycleLR(sgd, {.max_lr = 1, .total_steps = 5, .pct_start = 2}), Contains("pct_start"));
  CHECK_THROWS_WITH(OneCycleLR(sgd, {.max_lr = 1, .total_steps = 5, .anneal_strategy = "sin"}), Contains("'sin'"));
  CHECK_THROWS_WITH(OneCycleLR(adagrad, {.max_lr = 1, .total_steps = 5}), Contains("momentum or betas"));
  OneCycleLR(adagrad, {.max_lr = 1, .total_steps = 5, .cycle_momentum = false});
}

TEST_CASE("A cycle has an end", "[lr]") {
  auto sgd = one_group();
  OneCycleLR cycle(sgd, {.max_lr = 1, .total_steps = 10});
  step(cycle, 10);
  CHECK_THROWS_WITH(cycle.step(), Contains("tried to step 11 times") && Contains("10 steps"));
  // One step of ascent takes no time; Python divides by zero there.
  OneCycleLR steep(sgd, {.max_lr = 1, .total_steps = 10, .pct_start = 0.1});
  CHECK(get_lr(sgd.param_groups()[0]) == 1);
}

TEST_CASE("A class of one's own has growing groups and state without further ado", "[lr]") {
  auto optimizer = one_group(1);
  HalveTwice mine(optimizer);
  step(mine, 5);
  CHECK(lrs_of(optimizer) == std::vector<double>{0.25});
  auto other = one_group(1);
  HalveTwice loaded(other);
  loaded.load_state_dict(mine.state_dict());
  loaded.step();
  CHECK(loaded.last_epoch() == 6);
  CHECK(lrs_of(other) == std::vector<double>{1});
}

#include <fabric/helpers/lr/lr_scheduler_registry.h>

#include <torch/torch.h>

#include <fabric/helpers/lr/lr_schedulers.h>

#include "fabric/helpers/lr/lr_test_support.h"
#include "tests/support/catch.h"

using namespace fabric;
using namespace lr_test;
using Catch::Contains;

TEST_CASE("Schedulers are made by the names of Python's classes", "[lr]") {
  auto optimizer = two_groups();
  for (const char* path : {"StepLR", "lr_scheduler.StepLR", "torch.optim.lr_scheduler.StepLR"}) {
    auto made = make_lr_scheduler(path, Tree::Map{{"step_size", 4}, {"gamma", 0.5}}, optimizer);
    CHECK(std::string(made->name()) == "StepLR");
    CHECK(lr_scheduler_name(path) == "StepLR");
  }
  auto plateau = make_lr_scheduler("ReduceLROnPlateau", Tree::Map{{"min_lr", Tree::List{1e-3, 1e-4}}}, optimizer);
  CHECK(dynamic_cast<ReduceLROnPlateau&>(*plateau).min_lrs() == std::vector<double>{1e-3, 1e-4});
  auto constant = make_lr_scheduler("ConstantLR", Tree(), optimizer);  // no init_args at all
  CHECK(constant->last_epoch() == 0);
  Tree inner = Tree::List{Tree::Map{{"class_path", "ConstantLR"}},
                          Tree::Map{{"class_path", "StepLR"}, {"init_args", Tree::Map{{"step_size", 2}}}}};
  auto sequence =
      make_lr_scheduler("SequentialLR", Tree::Map{{"schedulers", inner}, {"milestones", Tree::List{3}}}, optimizer);
  CHECK(dynamic_cast<SequentialLR&>(*sequence).schedulers().size() == 2);
  CHECK(available_lr_schedulers().size() >= 15);
}

TEST_CASE("Names and settings that do not exist are refused with the nearest", "[lr]") {
  auto optimizer = two_groups();
  auto make = [&](const char* name, Tree args) { make_lr_scheduler(name, args, optimizer); };
  CHECK_THROWS_WITH(make("torch.optim.lr_scheduler.StepLr", Tree()), Contains("did you mean 'StepLR'"));
  CHECK_THROWS_WITH(make("StepLR", Tree::Map{{"stepsize", 3}}), Contains("StepLR: ") && Contains("step_size"));
  CHECK_THROWS_WITH(make("StepLR", Tree::Map{{"step_size", "many"}}), Contains("StepLR: step_size"));
  CHECK_THROWS_WITH(make("StepLR", Tree()), Contains("StepLR: step_size must be given"));
  CHECK_THROWS_WITH(make("LambdaLR", Tree()), Contains("register_lr_scheduler"));
  CHECK_THROWS_WITH(make("SequentialLR", Tree::Map{{"schedulers", Tree::List{"StepLR"}}}), Contains("class_path"));
  CHECK_THROWS_AS(make("ReduceLROnPlateau", Tree::Map{{"min_lr", Tree::List{0.1}}}), ConfigError);
}

TEST_CASE("A scheduler of one's own can be registered", "[lr]") {
  auto optimizer = one_group(1);
  register_lr_scheduler("my.halving", [](torch::optim::Optimizer& over, const Tree&) -> std::unique_ptr<LRScheduler> {
    return std::make_unique<HalveTwice>(over);
  });
  auto made = make_lr_scheduler("my.halving", Tree(), optimizer);
  CHECK(std::string(made->name()) == "HalveTwice");
  auto again = [](torch::optim::Optimizer&, const Tree&) -> std::unique_ptr<LRScheduler> { return nullptr; };
  CHECK_THROWS_WITH(register_lr_scheduler("my.halving", again), Contains("registered already"));
  CHECK_THROWS_AS(register_lr_scheduler("nothing", nullptr), fabric::MisuseError);
}

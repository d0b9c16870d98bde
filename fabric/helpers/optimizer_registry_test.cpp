#include <fabric/helpers/optimizer_registry.h>

#include <torch/torch.h>

#include <fabric/base/error.h>
#include <fabric/optim/fused.h>
#include <fabric/optim/optimizer_group.h>

#include "tests/support/catch.h"

using namespace fabric;
using Catch::Contains;
using torch::optim::OptimizerParamGroup;

namespace {

std::vector<OptimizerParamGroup> groups(int count = 1) {
  std::vector<OptimizerParamGroup> made;
  for (int i = 0; i < count; ++i) made.emplace_back(std::vector<at::Tensor>{torch::zeros({2}, torch::requires_grad())});
  return made;
}

template <class Options>
Options& options_of(torch::optim::Optimizer& optimizer, std::size_t group = 0) {
  return dynamic_cast<Options&>(optimizer.param_groups()[group].options());
}

// Options of a class that LibTorch knows nothing of.
struct OddOptions : torch::optim::OptimizerCloneableOptions<OddOptions> {};
struct OddOptimizer : torch::optim::Optimizer {
  OddOptimizer() : Optimizer(std::vector<at::Tensor>{torch::zeros({2})}, std::make_unique<OddOptions>()) {}
  at::Tensor step(LossClosure = nullptr) override { return {}; }
};

}  // namespace

TEST_CASE("Optimizers are made by the names of Python's classes", "[optimizer_registry]") {
  for (const auto& name : available_optimizers()) {
    auto optimizer = make_optimizer("torch.optim." + name, Tree::Map{{"lr", 0.25}}, groups());
    CHECK(get_lr(optimizer->param_groups()[0]) == 0.25);
    CHECK(optimizer_class(*optimizer) == name);
    CHECK(optimizer_name(name) == name);
  }
  Tree settings = Tree::Map{{"lr", 0.1}, {"momentum", 0.9}, {"weight_decay", 1e-4}, {"nesterov", true}};
  auto sgd = make_optimizer("SGD", settings, groups(2));
  CHECK(options_of<torch::optim::SGDOptions>(*sgd, 1).momentum() == 0.9);
  CHECK(options_of<torch::optim::SGDOptions>(*sgd, 1).nesterov());
  auto adamw = make_optimizer("AdamW", Tree::Map{{"betas", Tree::List{0.8, 0.99}}}, groups());
  CHECK(options_of<torch::optim::AdamWOptions>(*adamw).betas() == std::tuple(0.8, 0.99));
  CHECK(options_of<torch::optim::AdamWOptions>(*adamw).weight_decay() == 0.01);
  auto adam = make_optimizer("Adam", Tree(), groups());
  CHECK(options_of<torch::optim::AdamOptions>(*adam).weight_decay() == 0);
  CHECK(get_lr(adam->param_groups()[0]) == 1e-3);
}

TEST_CASE("fused: true makes the fused class", "[optimizer_registry]") {
  auto optimizer = make_optimizer("AdamW", Tree::Map{{"fused", true}}, groups());
  CHECK(dynamic_cast<fabric::optim::AdamW*>(optimizer.get()));
  CHECK(optimizer_class(*optimizer) == "FusedAdamW");
}

TEST_CASE("Options of a group stay, also where they equal a default", "[optimizer_registry]") {
  auto given = groups(2);
  given[1].set_options(std::make_unique<torch::optim::AdamWOptions>(torch::optim::AdamWOptions(1e-3).weight_decay(0)));
  auto optimizer = make_optimizer("AdamW", Tree::Map{{"lr", 0.5}, {"weight_decay", 0.1}}, std::move(given));
  CHECK(get_lr(optimizer->param_groups()[0]) == 0.5);
  CHECK(get_lr(optimizer->param_groups()[1]) == 1e-3);
  CHECK(options_of<torch::optim::AdamWOptions>(*optimizer, 1).weight_decay() == 0);
  auto wrong = groups();
  wrong[0].set_options(std::make_unique<torch::optim::SGDOptions>(0.1));
  CHECK_THROWS_WITH(make_optimizer("AdamW", Tree(), std::move(wrong)), Contains("options of another optimizer"));
}

TEST_CASE("Optimizers and settings that do not exist are refused with the nearest", "[optimizer_registry]") {
  auto make = [](const char* name, Tree args) { make_optimizer(name, args, groups()); };
  CHECK_THROWS_WITH(make("torch.optim.AdmW", Tree()), Contains("did you mean 'AdamW'"));
  CHECK_THROWS_WITH(make("SGD", Tree::Map{{"momentun", 0.9}}), Contains("SGD: ") && Contains("momentum"));
  CHECK_THROWS_WITH(make("SGD", Tree::Map{{"lr", -1.0}}), Contains("0 or more"));
  CHECK_THROWS_WITH(make("SGD", Tree::Map{{"nesterov", true}}), Contains("nesterov"));
  CHECK_THROWS_WITH(make("Adam", Tree::Map{{"betas", Tree::List{0.9}}}), Contains("two numbers"));
  CHECK_THROWS_WITH(make("Adam", Tree::Map{{"betas", Tree::List{0.9, 1.0}}}), Contains("below 1"));
  CHECK_THROWS_WITH(make("LBFGS", Tree::Map{{"line_search_fn", "x"}}), Contains("strong_wolfe"));
  CHECK_THROWS_WITH(make_optimizer("SGD", Tree(), {}), Contains("no group"));
}

TEST_CASE("An optimizer of one's own can be registered", "[optimizer_registry]") {
  register_optimizer("mine.Fixed", [](const Tree&, std::vector<OptimizerParamGroup> over) {
    return std::make_shared<torch::optim::SGD>(std::move(over), torch::optim::SGDOptions(0.125));
  });
  CHECK(get_lr(make_optimizer("mine.Fixed", Tree(), groups())->param_groups()[0]) == 0.125);
  auto again = [](const Tree&, std::vector<OptimizerParamGroup>) -> std::shared_ptr<torch::optim::Optimizer> {
    return nullptr;
  };
  CHECK_THROWS_WITH(register_optimizer("mine.Fixed", again), Contains("registered already"));
}

TEST_CASE("Every optimizer of LibTorch has a learning rate, some a momentum", "[optimizer_registry]") {
  using namespace torch::optim;
  std::vector<at::Tensor> parameters = {torch::zeros({2})};
  std::vector<std::unique_ptr<Optimizer>> all;
  all.push_back(std::make_unique<SGD>(parameters, SGDOptions(0.5).momentum(0.3)));
  all.push_back(std::make_unique<RMSprop>(parameters, RMSpropOptions(0.5).momentum(0.3)));
  all.push_back(std::make_unique<Adam>(parameters, AdamOptions(0.5).betas({0.3, 0.9})));
  all.push_back(std::make_unique<AdamW>(parameters, AdamWOptions(0.5).betas({0.3, 0.9})));
  all.push_back(std::make_unique<fabric::optim::SGD>(parameters, SGDOptions(0.5).momentum(0.3)));
  all.push_back(std::make_unique<fabric::optim::Adam>(parameters, AdamOptions(0.5).betas({0.3, 0.9})));
  all.push_back(std::make_unique<fabric::optim::AdamW>(parameters, AdamWOptions(0.5).betas({0.3, 0.9})));
  for (auto& optimizer : all) {
    auto& group = optimizer->param_groups()[0];
    CHECK(get_lr(group) == 0.5);
    set_lr(group, 0.25);
    CHECK(get_lr(group) == 0.25);
    CHECK(get_momentum(group) == 0.3);
    set_momentum(group, 0.4);
    CHECK(get_momentum(group) == 0.4);
  }
  CHECK(std::get<1>(static_cast<AdamOptions&>(all[2]->param_groups()[0].options()).betas()) == 0.9);
  Adagrad adagrad(parameters, AdagradOptions(0.5));
  LBFGS lbfgs(parameters, LBFGSOptions(0.5));
  for (Optimizer* optimizer : {static_cast<Optimizer*>(&adagrad), static_cast<Optimizer*>(&lbfgs)}) {
    set_lr(optimizer->param_groups()[0], 0.75);
    CHECK(get_lr(optimizer->param_groups()[0]) == 0.75);
    CHECK_FALSE(get_momentum(optimizer->param_groups()[0]));
    CHECK_THROWS_AS(set_momentum(optimizer->param_groups()[0], 0.1), MisuseError);
  }
  OddOptimizer odd;
  CHECK_THROWS_WITH(get_lr(odd.param_groups()[0]), Contains("get_lr"));
}

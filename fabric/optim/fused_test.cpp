#include <fabric/optim/fused.h>

#include <memory>
#include <sstream>

#include <torch/torch.h>

#include "tests/support/catch.h"

namespace {

using torch::optim::OptimizerParamGroup;

// Plain and fused optimizers of one kind, for tests over all kinds.
struct SgdKind {
  using Plain = torch::optim::SGD;
  using Fused = fabric::optim::SGD;
  using Options = torch::optim::SGDOptions;
  static std::vector<Options> variants() {
    Options plain(0.1);
    return {plain, Options(0.1).weight_decay(0.1), Options(0.1).momentum(0.9),
            Options(0.1).momentum(0.9).dampening(0.3), Options(0.1).momentum(0.8).nesterov(true).weight_decay(0.01)};
  }
};
struct AdamKind {
  using Plain = torch::optim::Adam;
  using Fused = fabric::optim::Adam;
  using Options = torch::optim::AdamOptions;
  static std::vector<Options> variants() {
    return {Options(0.01), Options(0.01).weight_decay(0.1), Options(0.01).amsgrad(true),
            Options(0.01).betas({0.8, 0.99}).eps(1e-6)};
  }
};
struct AdamWKind {
  using Plain = torch::optim::AdamW;
  using Fused = fabric::optim::AdamW;
  using Options = torch::optim::AdamWOptions;
  static std::vector<Options> variants() {
    return {Options(0.01), Options(0.01).weight_decay(0.0), Options(0.01).amsgrad(true).weight_decay(0.1)};
  }
};

using Tensors = std::vector<torch::Tensor>;

Tensors make_parameters(torch::Dtype dtype = torch::kFloat) {
  torch::manual_seed(1);
  Tensors parameters;
  for (auto sizes : {std::vector<std::int64_t>{5, 3}, {7}, {2, 3, 4}, {}})
    parameters.push_back(torch::randn(sizes, dtype).set_requires_grad(true));
  return parameters;
}

void set_gradients(const Tensors& parameters, int step) {
  torch::manual_seed(100 + step);
  for (const auto& parameter : parameters) parameter.mutable_grad() = torch::randn_like(parameter.detach());
}

void check_equal(const Tensors& ours, const Tensors& theirs, double tolerance = 1e-6) {
  REQUIRE(ours.size() == theirs.size());
  for (std::size_t i = 0; i < ours.size(); ++i) {
    INFO("parameter " << i);
    CHECK((ours[i].detach() - theirs[i].detach()).abs().max().template item<double>() <= tolerance);
  }
}

// Two groups, the second with its own learning rate.
template <class Options>
std::vector<OptimizerParamGroup> groups(const Tensors& p, Options options) {
  std::vector<OptimizerParamGroup> made;
  made.emplace_back(Tensors{p[0], p[1]}, std::make_unique<Options>(options));
  auto second = options;
  second.lr(options.lr() * 0.5);
  made.emplace_back(Tensors{p[2], p[3]}, std::make_unique<Options>(second));
  return made;
}

template <class Kind, class Change>
void compare(typename Kind::Options options, Change change, double tolerance = 1e-6,
             torch::Dtype dtype = torch::kFloat) {
  auto ours = make_parameters(dtype), theirs = make_parameters(dtype);
  typename Kind::Fused fused(groups(ours, options), options);
  typename Kind::Plain plain(groups(theirs, options), options);
  for (int step = 0; step < 20; ++step) {
    set_gradients(ours, step);
    set_gradients(theirs, step);
    change(step, ours, fused);
    change(step, theirs, plain);
    fused.step();
    plain.step();
  }
  check_equal(ours, theirs, tolerance);
}

}  // namespace

TEMPLATE_TEST_CASE("fused steps give the plain ones' numbers", "[fused]", SgdKind, AdamKind, AdamWKind) {
  int variant = 0;
  for (const auto& options : TestType::variants()) {
    INFO("variant " << variant++);
    compare<TestType>(options, [](int, const Tensors&, torch::optim::Optimizer&) {});
    compare<TestType>(
        options, [](int, const Tensors&, torch::optim::Optimizer&) {}, 1e-12, torch::kDouble);
  }
}

TEMPLATE_TEST_CASE("fused steps follow learning rates, missing gradients and new groups", "[fused]", SgdKind, AdamKind,
                   AdamWKind) {
  for (const auto& options : TestType::variants())
    compare<TestType>(options, [&](int step, const Tensors& parameters, torch::optim::Optimizer& optimizer) {
      if (step % 3 == 1) parameters[0].mutable_grad().reset();
      if (step < 5) parameters[2].mutable_grad().reset();
      if (step == 7) optimizer.param_groups()[0].options().set_lr(0.003);
      if (step == 9) {
        // A parameter that joins late, in a group of its own, and shares nothing with the two before.
        auto late = torch::ones({3}, torch::requires_grad());
        optimizer.add_param_group(OptimizerParamGroup({late}));
      }
      if (step > 9) {
        auto& late = optimizer.param_groups()[2].params()[0];
        late.mutable_grad() = torch::full_like(late.detach(), 0.1 * step);
        if (step == 19) parameters[3].mutable_grad() = late.detach().sum();
      }
    });
}

TEMPLATE_TEST_CASE("a fused optimizer is the plain one to everybody else", "[fused]", SgdKind, AdamKind, AdamWKind) {
  auto options = TestType::variants().back();
  auto ours = make_parameters(), theirs = make_parameters();
  auto fused = std::make_unique<typename TestType::Fused>(ours, options);
  typename TestType::Plain plain(theirs, options);
  CHECK(dynamic_cast<typename TestType::Plain*>(static_cast<torch::optim::Optimizer*>(fused.get())));
  for (int step = 0; step < 3; ++step) {
    set_gradients(ours, step);
    set_gradients(theirs, step);
    fused->step();
    plain.step();
  }
  // Each loads what the other saved, in the middle, and goes on.
  std::stringstream from_fused, from_plain;
  torch::save(*fused, from_fused);
  torch::save(plain, from_plain);
  torch::load(*fused, from_plain);
  torch::load(plain, from_fused);
  for (int step = 3; step < 6; ++step) {
    set_gradients(ours, step);
    set_gradients(theirs, step);
    fused->step();
    plain.step();
  }
  check_equal(ours, theirs);
}

TEST_CASE("the steps in the state are true at any time, and changes to the state are seen", "[fused]") {
  auto parameters = make_parameters(), reference = make_parameters();
  fabric::optim::AdamW fused(parameters, fabric::optim::AdamWOptions(0.01));
  torch::optim::AdamW plain(reference, torch::optim::AdamWOptions(0.01));
  auto state = [](torch::optim::AdamW& optimizer, const torch::Tensor& parameter) -> torch::optim::AdamWParamState& {
    return static_cast<torch::optim::AdamWParamState&>(*optimizer.state().at(parameter.unsafeGetTensorImpl()));
  };
  auto step_both = [&](int step) {
    set_gradients(parameters, step);
    set_gradients(reference, step);
    fused.step();
    plain.step();
  };
  for (int step = 1; step <= 4; ++step) {
    step_both(step);
    CHECK(state(fused, parameters[0]).step() == step);
  }
  for (auto* optimizer : {static_cast<torch::optim::AdamW*>(&fused), &plain}) {
    const auto& p = optimizer == &plain ? reference : parameters;
    state(*optimizer, p[0]).step(40);
    state(*optimizer, p[1]).exp_avg(torch::ones({7}));
    state(*optimizer, p[2]).exp_avg_sq().fill_(2.0);
    optimizer->state().erase(p[3].unsafeGetTensorImpl());
  }
  step_both(5);
  step_both(6);
  check_equal(parameters, reference);
  CHECK(state(fused, parameters[0]).step() == 42);
  CHECK(state(fused, parameters[3]).step() == 2);
}

TEMPLATE_TEST_CASE("a closure runs with gradients on and its loss comes back", "[fused]", SgdKind, AdamKind,
                   AdamWKind) {
  auto ours = make_parameters(), theirs = make_parameters();
  auto options = TestType::variants().front();
  typename TestType::Fused fused(ours, options);
  typename TestType::Plain plain(theirs, options);
  auto run = [](torch::optim::Optimizer& optimizer, const Tensors& parameters) {
    torch::NoGradGuard no_grad;
    return optimizer.step([&] {
      optimizer.zero_grad();
      auto loss = parameters[0].square().sum() + parameters[3].abs();
      loss.backward();
      return loss;
    });
  };
  for (int step = 0; step < 5; ++step)
    CHECK(run(fused, ours).template item<float>() == Approx(run(plain, theirs).template item<float>()));
  check_equal(ours, theirs);
}

TEMPLATE_TEST_CASE("gradients and parameters of any layout", "[fused]", SgdKind, AdamKind, AdamWKind) {
  for (const auto& options : TestType::variants()) {
    auto make = [] {
      torch::manual_seed(5);
      Tensors parameters{torch::randn({4, 6}).t(),
                         torch::randn({2, 3, 4, 5}).contiguous(torch::MemoryFormat::ChannelsLast),
                         torch::randn({6, 4}).slice(1, 0, 2)};
      for (auto& parameter : parameters) parameter = parameter.detach().set_requires_grad(true);
      return parameters;
    };
    auto ours = make(), theirs = make();
    ours.pop_back();
    theirs.pop_back();
    // The third, with gaps in its storage, has no fused kernel: with it every step is the plain one.
    for (bool gaps : {false, true}) {
      if (gaps) {
        ours.push_back(make()[2]);
        theirs.push_back(make()[2]);
      }
      typename TestType::Fused fused(ours, options);
      typename TestType::Plain plain(theirs, options);
      for (int step = 0; step < 4; ++step) {
        for (auto* all : {&ours, &theirs}) {
          torch::manual_seed(step);
          for (auto& parameter : *all) {
            auto gradient = torch::randn(parameter.sizes());
            // An expanded gradient repeats its storage.
            parameter.mutable_grad() = step % 2 ? gradient : gradient.mean().expand(parameter.sizes());
          }
        }
        fused.step();
        plain.step();
      }
      check_equal(ours, theirs);
    }
  }
}

TEST_CASE("sparse gradients take the plain way", "[fused]") {
  auto make = [] {
    return Tensors{torch::ones({4, 2}, torch::requires_grad()), torch::ones({2}, torch::requires_grad())};
  };
  auto ours = make(), theirs = make();
  fabric::optim::SGD fused(ours, fabric::optim::SGDOptions(0.5));
  torch::optim::SGD plain(theirs, torch::optim::SGDOptions(0.5));
  auto backward = [](const Tensors& parameters, bool sparse) {
    auto rows = torch::embedding(parameters[0], torch::tensor({1, 1, 3}), -1, false, sparse);
    (rows.sum() + parameters[1].sum()).backward();
  };
  for (bool sparse : {true, false, true}) {
    fused.zero_grad();
    plain.zero_grad();
    backward(ours, sparse);
    backward(theirs, sparse);
    fused.step();
    plain.step();
    check_equal(ours, theirs);
  }
}

TEST_CASE("several dtypes in one group, 16-bit ones included", "[fused]") {
  for (auto dtype : {torch::kHalf, torch::kBFloat16}) {
    auto wide = torch::ones({3}, torch::dtype(torch::kDouble).requires_grad(true));
    auto narrow = torch::ones({3}, torch::dtype(dtype).requires_grad(true));
    fabric::optim::AdamW fused({wide, narrow}, fabric::optim::AdamWOptions(0.1));
    for (int step = 0; step < 3; ++step) {
      wide.mutable_grad() = torch::ones_like(wide.detach());
      narrow.mutable_grad() = torch::ones_like(narrow.detach());
      fused.step();
    }
    CHECK(narrow.scalar_type() == dtype);
    CHECK(narrow[0].item<double>() == Approx(wide[0].item<double>()).epsilon(0.01));
  }
}

TEMPLATE_TEST_CASE("parameters without elements", "[fused]", SgdKind, AdamKind, AdamWKind) {
  for (const auto& options : TestType::variants()) {
    auto empty = torch::zeros({0, 3}, torch::requires_grad()), other = torch::ones({2}, torch::requires_grad());
    typename TestType::Fused fused(Tensors{empty, other}, options);
    for (int step = 0; step < 2; ++step) {
      set_gradients({empty, other}, step);
      fused.step();
    }
    CHECK(empty.numel() == 0);
    CHECK(other[0].template item<float>() != 1.0f);
  }
}

TEST_CASE("a fused optimizer follows parameters that change their format", "[fused]") {
  torch::nn::Linear ours(3, 2), theirs(3, 2);
  {
    torch::NoGradGuard no_grad;
    theirs->weight.copy_(ours->weight);
    theirs->bias.copy_(ours->bias);
  }
  fabric::optim::SGD fused(ours->parameters(), fabric::optim::SGDOptions(0.1));
  torch::optim::SGD plain(theirs->parameters(), torch::optim::SGDOptions(0.1));
  for (auto dtype : {torch::kFloat, torch::kDouble}) {
    for (auto* model : {&ours, &theirs}) {
      (*model)->to(dtype);
      (*model)->zero_grad();
      (*model)->forward(torch::ones({1, 3}, dtype)).sum().backward();
    }
    fused.step();
    plain.step();
    check_equal(ours->parameters(), theirs->parameters());
  }
}

TEST_CASE("a fused step frees gradients for zero_grad and tells autograd of the change", "[fused]") {
  auto parameters = make_parameters();
  fabric::optim::AdamW fused(parameters, fabric::optim::AdamWOptions(0.01));
  set_gradients(parameters, 0);
  auto product = parameters[0] * parameters[0];
  auto version = parameters[0]._version();
  fused.step();
  CHECK(parameters[0]._version() > version);
  CHECK(parameters[0].grad().use_count() == 1);
  CHECK_THROWS_WITH(product.sum().backward(), Catch::Contains("modified by an inplace operation"));
}

TEST_CASE("a fused optimizer moves like any other", "[fused]") {
  auto parameters = make_parameters(), reference = make_parameters();
  auto make = [&] { return fabric::optim::Adam(parameters, fabric::optim::AdamOptions(0.01)); };
  auto first = make();
  torch::optim::Adam plain(reference, torch::optim::AdamOptions(0.01));
  set_gradients(parameters, 0);
  set_gradients(reference, 0);
  first.step();
  plain.step();
  auto second = std::move(first);
  second.step();
  plain.step();
  check_equal(parameters, reference);
}

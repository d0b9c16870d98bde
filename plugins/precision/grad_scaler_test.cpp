#include <fabric/plugins/precision/grad_scaler.h>

#include <cmath>
#include <limits>

#include <torch/torch.h>

#include "tests/support/catch.h"

using fabric::ConfigError;
using fabric::GradScaler;
using fabric::MisuseError;

namespace {

constexpr float kFloatInf = std::numeric_limits<float>::infinity();

torch::Tensor parameter(double value = 1.0) { return torch::full({3}, value, torch::requires_grad()); }

// loss = sum(parameter * slope), so that the gradient is the slope.
void backward(GradScaler& scaler, const torch::Tensor& weight, double slope) {
  scaler.scale((weight * slope).sum()).backward();
}

bool is_all(const torch::Tensor& tensor, double value) { return torch::equal(tensor, torch::full_like(tensor, value)); }

}  // namespace

TEST_CASE("the loss is scaled and the step sees unscaled gradients", "[scaler]") {
  auto weight = parameter();
  torch::optim::SGD optimizer({weight}, 0.5);
  GradScaler scaler;
  CHECK(scaler.get_scale() == 65536.0);
  backward(scaler, weight, 0.25);
  CHECK(is_all(weight.grad(), 0.25 * 65536));
  scaler.step(optimizer);
  CHECK(is_all(weight.grad(), 0.25));
  CHECK(is_all(weight.detach(), 1.0 - 0.5 * 0.25));
  CHECK_FALSE(scaler.step_was_skipped());
  scaler.update();
}

TEST_CASE("a step with an infinite or missing number is skipped and the scale shrinks", "[scaler]") {
  for (float bad : {kFloatInf, -kFloatInf, std::nanf("")}) {
    auto weight = parameter();
    torch::optim::SGD optimizer({weight}, 0.5);
    GradScaler scaler({.init_scale = 8});
    backward(scaler, weight, 1.0);
    weight.mutable_grad()[1] = bad;
    CHECK_FALSE(scaler.step(optimizer).defined());
    CHECK(scaler.step_was_skipped());
    CHECK(scaler.found_inf(optimizer));
    scaler.update();
    CHECK(is_all(weight.detach(), 1.0));
    CHECK(scaler.get_scale() == 4.0);
    optimizer.zero_grad();
    backward(scaler, weight, 1.0);
    scaler.step(optimizer);
    CHECK_FALSE(scaler.step_was_skipped());
    CHECK(is_all(weight.detach(), 0.5));
  }
}

TEST_CASE("the scale grows after enough good steps in a row", "[scaler]") {
  auto weight = parameter();
  torch::optim::SGD optimizer({weight}, 0.0);
  GradScaler scaler({.init_scale = 2, .growth_factor = 4, .backoff_factor = 0.25, .growth_interval = 3});
  std::vector<double> seen;
  for (int i = 0; i < 9; ++i) {
    optimizer.zero_grad();
    backward(scaler, weight, 1.0);
    if (i == 4) weight.mutable_grad()[0] = kFloatInf;
    scaler.step(optimizer);
    scaler.update();
    seen.push_back(scaler.get_scale());
  }
  // Good steps 0-2 grow it, the bad step 4 shrinks it and begins the count anew, steps 5-7 grow it again.
  CHECK(seen == std::vector<double>{2, 2, 8, 8, 2, 2, 2, 8, 8});
}

TEST_CASE("gradients are unscaled once, for clipping between", "[scaler]") {
  auto weight = parameter();
  torch::optim::SGD optimizer({weight}, 1.0);
  GradScaler scaler;
  backward(scaler, weight, 2.0);
  CHECK_FALSE(scaler.is_unscaled(optimizer));
  scaler.unscale_(optimizer);
  CHECK(scaler.is_unscaled(optimizer));
  CHECK(is_all(weight.grad(), 2.0));
  CHECK_THROWS_AS(scaler.unscale_(optimizer), MisuseError);
  weight.mutable_grad().fill_(0.25);
  scaler.step(optimizer);
  CHECK(is_all(weight.detach(), 0.75));
  CHECK_THROWS_AS(scaler.step(optimizer), MisuseError);
  CHECK_THROWS_AS(scaler.unscale_(optimizer), MisuseError);
  scaler.update();
  backward(scaler, weight, 1.0);
  CHECK_NOTHROW(scaler.unscale_(optimizer));
}

TEST_CASE("several optimizers share one scale, and one bad gradient skips only its own step", "[scaler]") {
  auto first = parameter(), second = parameter();
  torch::optim::SGD one({first}, 1.0), two({second}, 1.0);
  GradScaler scaler({.init_scale = 16});
  scaler.scale((first + second).sum()).backward();
  first.mutable_grad()[0] = kFloatInf;
  scaler.step(one);
  CHECK(scaler.step_was_skipped());
  scaler.step(two);
  CHECK_FALSE(scaler.step_was_skipped());
  CHECK(is_all(second.detach(), 0.0));
  scaler.update();
  CHECK(scaler.get_scale() == 8.0);
}

TEST_CASE("parameters without gradients, in several dtypes and sparse", "[scaler]") {
  auto single = parameter(), idle = parameter();
  auto twice = torch::full({2}, 1.0, torch::dtype(torch::kDouble).requires_grad(true));
  auto table = torch::ones({4, 2}, torch::requires_grad());
  torch::optim::SGD optimizer({single, idle, twice, table}, 1.0);
  GradScaler scaler({.init_scale = 4});
  auto rows = torch::embedding(table, torch::tensor({1, 1, 3}), -1, false, /*sparse=*/true);
  scaler.scale(single.sum() + twice.sum().to(torch::kFloat) + rows.sum()).backward();
  REQUIRE(table.grad().is_sparse());
  scaler.unscale_(optimizer);
  CHECK(is_all(single.grad(), 1.0));
  CHECK(is_all(twice.grad(), 1.0));
  CHECK_FALSE(idle.grad().defined());
  CHECK(table.grad().to_dense()[1][0].item<float>() == 2.0f);
  CHECK_FALSE(scaler.found_inf(optimizer));
}

TEST_CASE("misuse of a scaler is explained", "[scaler]") {
  auto weight = parameter();
  torch::optim::SGD optimizer({weight}, 1.0);
  GradScaler scaler;
  CHECK_THROWS_WITH(scaler.unscale_(optimizer), Catch::Contains("before a loss was scaled"));
  CHECK_THROWS_AS(scaler.update(), MisuseError);
  CHECK_THROWS_AS(scaler.update(0.0), MisuseError);
  auto half = torch::ones({2}, torch::dtype(torch::kHalf).requires_grad(true));
  torch::optim::SGD half_optimizer({half}, 1.0);
  GradScaler other({.init_scale = 2});
  other.scale(half.sum()).backward();
  CHECK_THROWS_WITH(other.step(half_optimizer), Catch::Contains("16-bit gradients"));
  CHECK_THROWS_AS(GradScaler({.init_scale = 0}), ConfigError);
  CHECK_THROWS_AS(GradScaler({.init_scale = kFloatInf}), ConfigError);
  CHECK_THROWS_AS(GradScaler({.growth_factor = 1}), ConfigError);
  CHECK_THROWS_AS(GradScaler({.backoff_factor = 1}), ConfigError);
  CHECK_THROWS_AS(GradScaler({.growth_interval = 0}), ConfigError);
}

TEST_CASE("a disabled scaler is not there", "[scaler]") {
  auto weight = parameter();
  torch::optim::SGD optimizer({weight}, 1.0);
  GradScaler scaler({.enabled = false});
  backward(scaler, weight, 1.0);
  CHECK(is_all(weight.grad(), 1.0));
  scaler.unscale_(optimizer);
  scaler.step(optimizer);
  scaler.update();
  CHECK(is_all(weight.detach(), 0.0));
  CHECK(scaler.get_scale() == 1.0);
  CHECK(scaler.state_dict().as_map().empty());
}

TEST_CASE("a scaler's state has PyTorch's keys and continues elsewhere", "[scaler]") {
  auto weight = parameter();
  torch::optim::SGD optimizer({weight}, 0.0);
  GradScaler scaler({.init_scale = 32, .growth_interval = 3});
  for (int i = 0; i < 2; ++i) {
    optimizer.zero_grad();
    backward(scaler, weight, 1.0);
    scaler.step(optimizer);
    scaler.update();
  }
  auto state = scaler.state_dict();
  std::vector<std::string> keys;
  for (const auto& [key, value] : state.as_map()) keys.push_back(key);
  CHECK(keys ==
        std::vector<std::string>{"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"});
  CHECK(state.at("scale").as_double() == 32.0);
  CHECK(state.at("_growth_tracker").as_int() == 2);

  for (bool used_before : {false, true}) {
    GradScaler other({.init_scale = 4});
    optimizer.zero_grad();
    if (used_before) other.scale(weight.sum());
    other.load_state_dict(state);
    CHECK(other.get_scale() == 32.0);
    backward(other, weight, 1.0);
    other.step(optimizer);
    other.update();
    CHECK(other.get_scale() == 64.0);
  }
}

TEST_CASE("a scaler refuses a state that is none", "[scaler]") {
  GradScaler scaler;
  auto state = scaler.state_dict();
  CHECK_THROWS_AS(scaler.load_state_dict(fabric::Value::Map{}), fabric::CheckpointKeyError);
  auto worded = state;
  worded["scale"] = "large";
  CHECK_THROWS_AS(scaler.load_state_dict(worded), fabric::CheckpointKeyError);
  auto negative = state;
  negative["scale"] = -1.0;
  CHECK_THROWS_AS(scaler.load_state_dict(negative), ConfigError);
  CHECK(scaler.get_scale() == 65536.0);
}

TEST_CASE("ranks that see no infinity learn of others'", "[scaler]") {
  auto weight = parameter();
  torch::optim::SGD optimizer({weight}, 1.0);
  GradScaler scaler({.init_scale = 8});
  int calls = 0;
  scaler.set_found_inf_hook([&](at::Tensor& found) {
    ++calls;
    CHECK(found.numel() == 1);
    found.fill_(1.0);
  });
  backward(scaler, weight, 1.0);
  scaler.step(optimizer);
  scaler.update();
  CHECK(calls == 1);
  CHECK(scaler.step_was_skipped());
  CHECK(is_all(weight.detach(), 1.0));
  CHECK(scaler.get_scale() == 4.0);
}

TEST_CASE("an optimizer that unscales by itself gets the scale and what was found", "[scaler]") {
  struct Own : torch::optim::SGD, fabric::UnscalingOptimizer {
    using torch::optim::SGD::SGD;
    void set_grad_scale(const at::Tensor& scale, const at::Tensor& found_inf) override {
      given_scale = scale.item<double>();
      given_found = found_inf.item<double>();
    }
    double given_scale = 0, given_found = -1;
  };
  auto weight = parameter();
  Own optimizer({weight}, torch::optim::SGDOptions(0.0));
  GradScaler scaler({.init_scale = 8});
  backward(scaler, weight, 1.0);
  scaler.step(optimizer);
  CHECK(is_all(weight.grad(), 8.0));
  CHECK(optimizer.given_scale == 8.0);
  CHECK(optimizer.given_found == 0.0);
  scaler.update();
  weight.mutable_grad()[0] = kFloatInf;
  scaler.step(optimizer);
  CHECK(optimizer.given_found == 1.0);
  CHECK(scaler.step_was_skipped());
  scaler.update();
  CHECK(scaler.get_scale() == 4.0);
}

#include <fabric/plugins/precision/mixed_precision.h>

#include <limits>
#include <stdexcept>

#include <ATen/autocast_mode.h>
#include <torch/torch.h>

#include <fabric/optim/clip.h>
#include "tests/support/catch.h"

using fabric::GradScaler;
using fabric::MisuseError;
using fabric::MixedPrecision;

namespace {

constexpr auto kCpu = c10::DeviceType::CPU;

bool autocasts() { return at::autocast::is_autocast_enabled(kCpu); }

MixedPrecision half(GradScaler::Config config) {
  return MixedPrecision(torch::kHalf, kCpu, std::make_shared<GradScaler>(config));
}

struct Problem {
  torch::Tensor weight = torch::ones({2}, torch::requires_grad());
  torch::optim::SGD optimizer{{weight}, 1.0};
  torch::Tensor loss(double slope = 0.25) const { return (weight * slope).sum(); }
};

constexpr float kInf = std::numeric_limits<float>::infinity();

}  // namespace

TEST_CASE("mixed precision runs operators in 16 bits and keeps parameters in 32", "[mixed]") {
  for (auto dtype : {torch::kBFloat16, torch::kHalf}) {
    MixedPrecision precision(dtype, kCpu);
    torch::nn::Linear model(8, 4);
    precision.convert_module(*model);
    auto input = precision.convert_input(torch::randn({3, 8}));
    CHECK(input.scalar_type() == dtype);
    torch::Tensor output;
    {
      auto context = precision.forward_context();
      CHECK(autocasts());
      output = model(input);
      CHECK(output.scalar_type() == dtype);
    }
    CHECK_FALSE(autocasts());
    output = precision.convert_output(output);
    CHECK(output.scalar_type() == torch::kFloat);
    precision.backward(output.square().mean());
    CHECK(model->weight.scalar_type() == torch::kFloat);
    CHECK(model->weight.grad().scalar_type() == torch::kFloat);
    auto labels = torch::ones({2}, torch::kLong);
    CHECK(precision.convert_input(labels).is_same(labels));
  }
}

TEST_CASE("autocast ends with its scope, also by an exception, and restores what was set before", "[mixed]") {
  MixedPrecision precision(torch::kBFloat16, kCpu);
  try {
    auto context = precision.forward_context();
    throw std::runtime_error("in the model");
  } catch (const std::runtime_error&) {
  }
  CHECK_FALSE(autocasts());

  at::autocast::set_autocast_dtype(kCpu, torch::kHalf);
  {
    auto outer = precision.forward_context();
    CHECK(at::autocast::get_autocast_dtype(kCpu) == torch::kBFloat16);
    { auto inner = precision.forward_context(); }
    CHECK(autocasts());
  }
  CHECK(at::autocast::get_autocast_dtype(kCpu) == torch::kHalf);
  at::autocast::set_autocast_dtype(kCpu, torch::kBFloat16);
  CHECK(at::autocast::increment_nesting() == 1);
  CHECK(at::autocast::decrement_nesting() == 0);
}

TEST_CASE("converted weights are forgotten at the end of the context", "[mixed]") {
  MixedPrecision precision(torch::kBFloat16, kCpu);
  torch::nn::Linear model(torch::nn::LinearOptions(1, 1).bias(false));
  auto run = [&] {
    auto context = precision.forward_context();
    return model(torch::ones({1, 1})).item<float>();
  };
  {
    torch::NoGradGuard no_grad;
    model->weight.fill_(1.0);
  }
  CHECK(run() == 1.0f);
  {
    torch::NoGradGuard no_grad;
    model->weight.fill_(2.0);
  }
  CHECK(run() == 2.0f);
}

TEST_CASE("16-mixed scales, unscales, skips and recovers", "[mixed]") {
  auto precision = half({.init_scale = 8});
  CHECK(precision.requires_backward_call());
  Problem problem;
  precision.backward(problem.loss());
  CHECK(problem.weight.grad()[0].item<float>() == 2.0f);
  precision.optimizer_step(problem.optimizer, nullptr);
  CHECK(problem.weight[0].item<float>() == 0.75f);
  CHECK_FALSE(precision.step_was_skipped());

  problem.optimizer.zero_grad();
  precision.backward(problem.loss());
  problem.weight.mutable_grad()[1] = kInf;
  precision.optimizer_step(problem.optimizer, nullptr);
  CHECK(precision.step_was_skipped());
  CHECK(problem.weight[0].item<float>() == 0.75f);
  problem.optimizer.zero_grad();
  precision.backward(problem.loss());
  CHECK(problem.weight.grad()[0].item<float>() == 1.0f);
  precision.optimizer_step(problem.optimizer, nullptr);
  CHECK_FALSE(precision.step_was_skipped());
  CHECK(problem.weight[0].item<float>() == 0.5f);
}

TEST_CASE("optimizers that step on one loss all divide by its scale", "[mixed]") {
  auto precision = half({.init_scale = 8, .growth_interval = 1});
  Problem first, second;
  precision.backward(first.loss(1.0) + second.loss(1.0));
  precision.optimizer_step(first.optimizer, nullptr);
  precision.optimizer_step(second.optimizer, nullptr);
  CHECK(first.weight[0].item<float>() == 0.0f);
  CHECK(second.weight[0].item<float>() == 0.0f);
  CHECK(precision.state_dict().at("scale").as_double() == 16.0);
}

TEST_CASE("clipping unscales once and sees the true gradients", "[mixed]") {
  auto precision = half({.init_scale = 1024});
  Problem problem;
  precision.backward(problem.loss(3.0));
  for (int twice = 0; twice < 2; ++twice) precision.unscale_gradients(problem.optimizer);
  auto norm = fabric::optim::clip_grad_norm(precision.main_params(problem.optimizer), 1.0);
  CHECK(norm.item<float>() == Approx(std::sqrt(18.0)));
  precision.optimizer_step(problem.optimizer, nullptr);
  CHECK(problem.weight[0].item<float>() == Approx(1.0 - std::sqrt(0.5)));
}

TEST_CASE("gradients that are dropped after clipping leave no trace but in the scale", "[mixed]") {
  auto precision = half({.init_scale = 8});
  Problem problem;
  precision.backward(problem.loss());
  problem.weight.mutable_grad()[0] = kInf;
  precision.unscale_gradients(problem.optimizer);
  problem.optimizer.zero_grad();
  precision.gradients_cleared(problem.optimizer);

  precision.backward(problem.loss());
  CHECK(problem.weight.grad()[0].item<float>() == 1.0f);  // times 4: what was found has halved the scale
  precision.unscale_gradients(problem.optimizer);
  CHECK(problem.weight.grad()[0].item<float>() == 0.25f);
  precision.optimizer_step(problem.optimizer, nullptr);
  CHECK_FALSE(precision.step_was_skipped());
  CHECK(problem.weight[0].item<float>() == 0.75f);
}

TEST_CASE("gradients of a later backward pass are never mixed with unscaled ones", "[mixed]") {
  auto precision = half({.init_scale = 8});
  Problem problem;
  precision.backward(problem.loss());
  precision.unscale_gradients(problem.optimizer);
  Problem other;
  precision.backward(other.loss());
  precision.unscale_gradients(other.optimizer);  // two losses, two optimizers: none is in the other's way
  precision.unscale_gradients(problem.optimizer);
  precision.backward(problem.loss());
  CHECK_THROWS_AS(precision.unscale_gradients(problem.optimizer), MisuseError);
  CHECK_THROWS_AS(precision.optimizer_step(problem.optimizer, nullptr), MisuseError);
  precision.optimizer_step(other.optimizer, nullptr);
  CHECK(other.weight[0].item<float>() == 0.75f);
}

TEST_CASE("gradients that wait for their step are not unscaled again, whatever else is dropped", "[mixed]") {
  auto precision = half({.init_scale = 8});
  Problem first, second;
  precision.backward(first.loss() + second.loss());
  precision.unscale_gradients(first.optimizer);
  precision.unscale_gradients(second.optimizer);
  first.optimizer.zero_grad();
  precision.gradients_cleared(first.optimizer);
  precision.backward(first.loss());
  precision.optimizer_step(second.optimizer, nullptr);
  precision.optimizer_step(first.optimizer, nullptr);
  CHECK(second.weight[0].item<float>() == 0.75f);
  CHECK(first.weight[0].item<float>() == 0.75f);
}

TEST_CASE("clipping knows of a step that will be skipped", "[mixed]") {
  auto precision = half({.init_scale = 8});
  Problem problem;
  precision.backward(problem.loss());
  CHECK_FALSE(precision.will_skip_step(problem.optimizer));
  problem.weight.mutable_grad()[0] = kInf;
  precision.unscale_gradients(problem.optimizer);
  CHECK(precision.will_skip_step(problem.optimizer));
  precision.optimizer_step(problem.optimizer, nullptr);
  CHECK_FALSE(precision.will_skip_step(problem.optimizer));
}

TEST_CASE("a closure runs once, before the step", "[mixed]") {
  auto precision = half({.init_scale = 8});
  Problem problem;
  int calls = 0;
  torch::NoGradGuard no_grad;
  for (int step = 1; step <= 2; ++step) {
    auto loss = precision.optimizer_step(problem.optimizer, [&] {
      ++calls;
      problem.optimizer.zero_grad();
      auto value = problem.loss();
      precision.backward(value);
      return value;
    });
    CHECK(calls == step);
    CHECK(loss.item<float>() == 0.5f * (1.0f - 0.25f * (step - 1)));
    CHECK(problem.weight[0].item<float>() == 1.0f - 0.25f * step);
  }
}

TEST_CASE("LBFGS cannot work with a scaled loss", "[mixed]") {
  auto precision = half({});
  Problem problem;
  torch::optim::LBFGS lbfgs({problem.weight}, 1.0);
  CHECK_THROWS_WITH(precision.optimizer_step(lbfgs, [&] { return problem.loss(); }),
                    Catch::Contains("LBFGS") && Catch::Contains("bf16-mixed"));
  MixedPrecision unscaled(torch::kBFloat16, kCpu);
  CHECK_NOTHROW(unscaled.optimizer_step(lbfgs, [&] {
    auto loss = problem.loss().square();
    lbfgs.zero_grad();
    unscaled.backward(loss);
    return loss;
  }));
}

TEST_CASE("an optimizer that unscales by itself cannot be clipped", "[mixed]") {
  struct Own : torch::optim::SGD, fabric::UnscalingOptimizer {
    using torch::optim::SGD::SGD;
    void set_grad_scale(const at::Tensor&, const at::Tensor&) override {}
  };
  auto precision = half({});
  Problem problem;
  Own own({problem.weight}, torch::optim::SGDOptions(1.0));
  precision.backward(problem.loss());
  CHECK_THROWS_AS(precision.unscale_gradients(own), MisuseError);
}

TEST_CASE("the scaler's state travels with the precision", "[mixed]") {
  auto precision = half({.init_scale = 8});
  Problem problem;
  precision.backward(problem.loss());
  problem.weight.mutable_grad()[0] = kInf;
  precision.optimizer_step(problem.optimizer, nullptr);
  auto other = half({});
  other.load_state_dict(precision.state_dict());
  CHECK(other.scaler()->get_scale() == 4.0);
  MixedPrecision unscaled(torch::kBFloat16, kCpu);
  CHECK(unscaled.state_dict().as_map().empty());
  CHECK_NOTHROW(unscaled.load_state_dict(fabric::Value::Map{}));
}

TEST_CASE("mixed precision refuses formats and scalers that make no sense", "[mixed]") {
  CHECK(MixedPrecision(torch::kHalf, kCpu).name() == "16-mixed");
  CHECK(MixedPrecision(torch::kHalf, kCpu).scaler());
  CHECK(MixedPrecision(torch::kBFloat16, kCpu).name() == "bf16-mixed");
  CHECK_FALSE(MixedPrecision(torch::kBFloat16, kCpu).scaler());
  CHECK_THROWS_AS(MixedPrecision(torch::kBFloat16, kCpu, std::make_shared<GradScaler>()), fabric::ConfigError);
  CHECK_THROWS_AS(MixedPrecision(torch::kFloat, kCpu), fabric::ConfigError);
}

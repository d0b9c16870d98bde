#include <fabric/plugins/precision/true_precision.h>

#include <stdexcept>

#include <torch/torch.h>

#include "tests/support/catch.h"

using fabric::Precision;
using torch::ScalarType;

namespace {

struct Net : torch::nn::Module {
  Net() {
    register_module("linear", linear);
    register_module("norm", norm);
    phase = register_buffer("phase", torch::zeros({2}, torch::kComplexFloat));
  }
  torch::Tensor forward(torch::Tensor x) { return norm(linear(x)) + torch::zeros({3}); }
  torch::nn::Linear linear{4, 3};
  torch::nn::BatchNorm1d norm{3};
  torch::Tensor phase;
};

ScalarType default_dtype() { return c10::get_default_dtype_as_scalartype(); }

}  // namespace

TEST_CASE("32-true leaves everything alone", "[precision]") {
  Precision precision;
  CHECK(precision.name() == "32-true");
  CHECK_FALSE(precision.changes_forward());
  CHECK_FALSE(precision.requires_backward_call());
  auto input = torch::ones({2}, torch::kDouble);
  CHECK(precision.convert_input(input).is_same(input));
  CHECK(precision.convert_output(input).is_same(input));
  CHECK(precision.state_dict().as_map().empty());
  CHECK_FALSE(precision.step_was_skipped());

  auto weight = torch::ones({2}, torch::requires_grad()), other = torch::ones({1}, torch::requires_grad());
  torch::optim::SGD optimizer({torch::optim::OptimizerParamGroup({weight}), torch::optim::OptimizerParamGroup({other})},
                              torch::optim::SGDOptions(0.5));
  CHECK(precision.main_params(optimizer).size() == 2);
  precision.backward(weight.sum());
  precision.optimizer_step(optimizer, nullptr);
  CHECK(weight[0].item<float>() == 0.5f);
  auto loss = precision.optimizer_step(optimizer, [&] {
    optimizer.zero_grad();
    auto value = weight.sum();
    precision.backward(value);
    return value;
  });
  CHECK(loss.item<float>() == 1.0f);
  CHECK(weight[0].item<float>() == 0.0f);
}

// As a model does that has a TorchScript module inside: what it holds is not registered.
struct Outer : torch::nn::Module {
  Outer() {
    inner = register_module("inner", std::make_shared<Inner>());
    count = register_buffer("count", torch::tensor({(std::int64_t{1} << 53) + 1}));
  }
  struct Inner : torch::nn::Module {
    using torch::nn::Module::to;
    void to(torch::Dtype dtype, bool non_blocking) override {
      torch::nn::Module::to(dtype, non_blocking);
      hidden = hidden.to(dtype);
    }
    torch::Tensor hidden = torch::ones({2});
  };
  std::shared_ptr<Inner> inner;
  torch::Tensor count;
};

TEST_CASE("a module's own conversion is called", "[precision]") {
  Outer net;
  auto count = net.count.data_ptr();
  fabric::DoublePrecision().convert_module(net);
  CHECK(net.inner->hidden.scalar_type() == torch::kDouble);
  CHECK(net.count.scalar_type() == torch::kLong);
  CHECK(net.count.data_ptr() == count);  // not by way of a double, which has no such number
  struct Refusing : Outer {
    using Outer::to;
    void to(torch::Dtype, bool) override { throw std::runtime_error("no"); }
  } refusing;
  CHECK_THROWS_AS(fabric::DoublePrecision().convert_module(refusing), std::runtime_error);
  CHECK(refusing.count.scalar_type() == torch::kLong);
}

TEST_CASE("true precisions convert floating parameters and buffers, and nothing else", "[precision]") {
  for (auto dtype : {ScalarType::Double, ScalarType::Half, ScalarType::BFloat16}) {
    Net net;
    auto* before = net.linear->weight.unsafeGetTensorImpl();
    net.linear->weight.mutable_grad() = torch::ones_like(net.linear->weight);
    fabric::TruePrecision precision(dtype);
    precision.convert_module(net);
    for (const auto& parameter : net.parameters()) CHECK(parameter.scalar_type() == dtype);
    CHECK(net.norm->running_mean.scalar_type() == dtype);
    CHECK(net.norm->num_batches_tracked.scalar_type() == ScalarType::Long);
    CHECK(net.phase.scalar_type() == ScalarType::ComplexFloat);
    CHECK(net.linear->weight.unsafeGetTensorImpl() == before);
    CHECK(net.linear->weight.requires_grad());
    CHECK(net.linear->weight.is_leaf());
    CHECK(net.linear->weight.grad().scalar_type() == dtype);
  }
}

TEST_CASE("true precisions train in their format and hand out the user's", "[precision]") {
  for (auto dtype : {ScalarType::Double, ScalarType::BFloat16}) {
    Net net;
    fabric::TruePrecision precision(dtype);
    precision.convert_module(net);
    torch::Tensor output;
    {
      auto input = precision.convert_input(torch::randn({5, 4}));
      CHECK(input.scalar_type() == dtype);
      auto context = precision.forward_context();
      CHECK(default_dtype() == dtype);
      output = net.forward(input);
      CHECK(output.scalar_type() == dtype);
    }
    CHECK(default_dtype() == ScalarType::Float);
    output = precision.convert_output(output);
    CHECK(output.scalar_type() == ScalarType::Float);
    precision.backward(output.square().mean());
    CHECK(net.linear->weight.grad().scalar_type() == dtype);
    CHECK_FALSE(precision.requires_backward_call());
  }
}

TEST_CASE("only floating tensors convert", "[precision]") {
  fabric::DoublePrecision precision;
  for (auto dtype : {torch::kLong, torch::kBool, torch::kComplexFloat}) {
    auto tensor = torch::ones({2}, dtype);
    CHECK(precision.convert_input(tensor).is_same(tensor));
    CHECK(precision.convert_output(tensor).is_same(tensor));
  }
  CHECK_FALSE(precision.convert_input(torch::Tensor()).defined());
}

TEST_CASE("tensors and modules are made in the precision's format", "[precision]") {
  fabric::HalfPrecision precision(torch::kBFloat16);
  {
    auto context = precision.tensor_init_context();
    CHECK(torch::ones({1}).scalar_type() == torch::kBFloat16);
    CHECK(torch::ones({1}, torch::kDouble).scalar_type() == torch::kDouble);
    CHECK(torch::ones({1}, torch::kLong).scalar_type() == torch::kLong);
  }
  {
    auto context = precision.module_init_context();
    CHECK(torch::nn::Linear(2, 2)->weight.scalar_type() == torch::kBFloat16);
  }
  CHECK(torch::ones({1}).scalar_type() == torch::kFloat);
}

TEST_CASE("the default dtype comes back after an exception and after nesting", "[precision]") {
  fabric::DoublePrecision twice;
  fabric::HalfPrecision half;
  try {
    auto context = twice.forward_context();
    auto inner = half.forward_context();
    CHECK(default_dtype() == torch::kHalf);
    throw std::runtime_error("in the model");
  } catch (const std::runtime_error&) {
  }
  CHECK(default_dtype() == torch::kFloat);
  auto context = twice.forward_context();
  context.close();
  CHECK(default_dtype() == torch::kFloat);
}

TEST_CASE("true precisions know their names and refuse other formats", "[precision]") {
  CHECK(fabric::DoublePrecision().name() == "64-true");
  CHECK(fabric::HalfPrecision().name() == "16-true");
  CHECK(fabric::HalfPrecision(torch::kBFloat16).name() == "bf16-true");
  CHECK_THROWS_AS(fabric::HalfPrecision(torch::kDouble), fabric::ConfigError);
  CHECK_THROWS_AS(fabric::TruePrecision(torch::kLong), fabric::ConfigError);
}

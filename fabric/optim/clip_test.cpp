#include <fabric/optim/clip.h>

#include <cmath>
#include <limits>

#include <torch/torch.h>

#include <fabric/base/error.h>
#include "tests/support/catch.h"

using fabric::MisuseError;
using fabric::optim::clip_grad_norm;
using fabric::optim::clip_grad_value;

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

torch::Tensor with_gradient(torch::Tensor gradient) {
  auto parameter = torch::zeros(gradient.sizes(), gradient.options().requires_grad(true));
  parameter.mutable_grad() = std::move(gradient);
  return parameter;
}

std::vector<torch::Tensor> parameters() {
  torch::manual_seed(3);
  return {with_gradient(torch::randn({4, 5})), torch::zeros({2}, torch::requires_grad()),
          with_gradient(torch::randn({7}))};
}

}  // namespace

TEST_CASE("norm clipping agrees with LibTorch's for every norm", "[clip]") {
  for (double norm_type : {1.0, 2.0, 3.0, 0.5, kInf})
    for (double max_norm : {0.1, 1e6}) {
      INFO("norm " << norm_type << ", at most " << max_norm);
      auto ours = parameters(), theirs = parameters();
      double expected = torch::nn::utils::clip_grad_norm_(theirs, max_norm, norm_type);
      auto total = clip_grad_norm(ours, max_norm, norm_type);
      CHECK(total.dim() == 0);
      CHECK(total.item<double>() == Approx(expected).epsilon(1e-5));
      for (int i : {0, 2}) CHECK(torch::allclose(ours[i].grad(), theirs[i].grad(), 1e-5, 1e-8));
      CHECK_FALSE(ours[1].grad().defined());
    }
}

TEST_CASE("norm clipping over several dtypes and sparse gradients", "[clip]") {
  auto single = with_gradient(torch::full({1}, 3.0));
  auto twice = with_gradient(torch::full({1}, 4.0, torch::kDouble));
  auto half = with_gradient(torch::full({4}, 300.0, torch::kHalf));
  auto total = clip_grad_norm({single, twice}, 1.0);
  CHECK(total.item<double>() == Approx(5.0));
  CHECK(single.grad().item<float>() == Approx(0.6));
  CHECK(twice.grad().item<double>() == Approx(0.8));
  // The square of 600 is beyond what 16 bits hold.
  CHECK(clip_grad_norm({half}, 6.0).item<double>() == Approx(600.0));
  CHECK(half.grad()[0].item<float>() == Approx(3.0));

  auto table = torch::zeros({4, 1}, torch::requires_grad());
  torch::embedding(table, torch::tensor({1, 1, 3}), -1, false, /*sparse=*/true).sum().backward();
  CHECK(clip_grad_norm({table}, 0.5).item<double>() == Approx(std::sqrt(5.0)));
  CHECK(table.grad().to_dense().norm().item<double>() == Approx(0.5).epsilon(1e-4));
}

TEST_CASE("gradients that are not finite are an error when asked for, and stay as they are", "[clip]") {
  for (double bad : {kInf, -kInf, std::nan("")}) {
    auto parameter = with_gradient(torch::tensor({1.0f, static_cast<float>(bad)}));
    CHECK_THROWS_AS(clip_grad_norm({parameter}, 1.0, 2.0, true), MisuseError);
    CHECK(parameter.grad()[0].item<float>() == 1.0f);
    CHECK_FALSE(std::isfinite(clip_grad_norm({parameter}, 1.0).item<double>()));
  }
}

TEST_CASE("clipping nothing, and nonsense", "[clip]") {
  auto idle = torch::zeros({2}, torch::requires_grad());
  CHECK(clip_grad_norm({idle}, 1.0).item<double>() == 0.0);
  CHECK(clip_grad_norm({}, 1.0, 2.0, true).item<double>() == 0.0);
  CHECK_NOTHROW(clip_grad_value({idle}, 1.0));
  auto parameter = with_gradient(torch::ones({2}));
  for (double norm_type : {0.0, -1.0, std::nan("")})
    CHECK_THROWS_AS(clip_grad_norm({parameter}, 1.0, norm_type), MisuseError);
  CHECK_THROWS_AS(clip_grad_norm({parameter}, -1.0), MisuseError);
  CHECK_THROWS_AS(clip_grad_norm({parameter}, std::nan("")), MisuseError);
  CHECK_THROWS_AS(clip_grad_value({parameter}, -1.0), MisuseError);
}

TEST_CASE("a norm computed elsewhere scales the gradients", "[clip]") {
  auto parameter = with_gradient(torch::full({4}, 1.0));
  CHECK(fabric::optim::total_grad_norm({parameter}).item<double>() == Approx(2.0));
  fabric::optim::scale_grads_to_norm({parameter}, torch::tensor(8.0), 2.0);
  CHECK(parameter.grad()[0].item<float>() == Approx(0.25));
}

TEST_CASE("value clipping limits every number", "[clip]") {
  auto parameter = with_gradient(torch::tensor({-3.0f, -0.5f, 0.25f, 9.0f}));
  auto twice = with_gradient(torch::tensor({7.0}, torch::kDouble));
  clip_grad_value({parameter, twice}, 0.5);
  CHECK(torch::equal(parameter.grad(), torch::tensor({-0.5f, -0.5f, 0.25f, 0.5f})));
  CHECK(twice.grad().item<double>() == 0.5);
  auto* gradient = parameter.grad().unsafeGetTensorImpl();
  clip_grad_norm({parameter}, 0.1);
  CHECK(parameter.grad().unsafeGetTensorImpl() == gradient);
}

#include <fabric/strategies/activation.h>

#include <ATen/autocast_mode.h>
#include <torch/torch.h>

#include <map>

#include <fabric/base/error.h>
#include <fabric/dispatch/measure_flops.h>
#include <fabric/dispatch/operator_hooks.h>

#include "strategies/activation/products_test_support.h"
#include "tests/support/catch.h"

using activation_test::Names;
using activation_test::ProductsByWeight;
using Catch::Contains;
using fabric::checkpoint;
using fabric::CheckpointOptions;
using fabric::MisuseError;
using fabric::selective_saving;

namespace {

// Three products in series without bias.
struct Block {
  at::Tensor gate = torch::randn({512, 512}, torch::requires_grad());
  at::Tensor wq = torch::randn({512, 512}, torch::requires_grad());
  at::Tensor output = torch::randn({1024, 512}, torch::requires_grad());
  auto function() const {
    return [gate = gate, wq = wq, output = output](const at::Tensor& x) {
      return torch::linear(torch::linear(torch::linear(x, gate), wq), output).sum();
    };
  }
  std::vector<at::Tensor> all() const { return {gate, wq, output}; }
};

std::shared_ptr<ProductsByWeight> products_of(const Block& block) {
  return std::make_shared<ProductsByWeight>(std::map<void*, std::string>{
      {block.gate.data_ptr(), "gate"}, {block.wq.data_ptr(), "wq"}, {block.output.data_ptr(), "output"}});
}

using Shapes = std::vector<std::pair<std::int64_t, std::int64_t>>;

CheckpointOptions selective(Shapes recompute = {}) {
  return {.policy = selective_saving({.recompute_shapes = std::move(recompute)})};
}

struct Outcome {
  at::Tensor loss;
  std::vector<at::Tensor> gradients;
};

template <class Run>
Outcome outcome_of(const Block& block, const at::Tensor& x0, Run&& run) {
  for (auto& parameter : block.all()) at::Tensor(parameter).mutable_grad().reset();
  auto x = x0.clone().requires_grad_();
  torch::manual_seed(11);
  Outcome out{run(x), {}};
  out.loss.backward();
  out.gradients.push_back(x.grad());
  for (auto& parameter : block.all()) out.gradients.push_back(parameter.grad().clone());
  return out;
}

void check_same(const Outcome& a, const Outcome& b) {
  CHECK(torch::equal(a.loss, b.loss));
  for (std::size_t i = 0; i < a.gradients.size(); ++i) CHECK(torch::equal(a.gradients[i], b.gradients[i]));
}

}  // namespace

TEST_CASE("of the plain products every second one is computed again", "[activation]") {
  Block block;
  auto run = block.function();
  for (bool batched : {false, true}) {
    auto x0 = batched ? torch::randn({4, 16, 512}) : torch::randn({64, 512});
    auto expected = outcome_of(block, x0, run);
    for (const auto& [shapes, again] : std::vector<std::pair<Shapes, Names>>{
             {{}, {"wq"}}, {{{512, 512}}, {"gate", "wq"}}, {{{512, 1024}}, {"wq", "output"}}}) {
      auto products = products_of(block);
      auto found = outcome_of(block, x0, [&](const at::Tensor& x) {
        auto loss = checkpoint(selective(shapes), run, x);
        products->executed.clear();
        return loss;
      });
      check_same(found, expected);
      auto x = x0.clone().requires_grad_();
      auto loss = checkpoint(selective(shapes), run, x);
      {
        fabric::dispatch::Activation counting(fabric::dispatch::Level::below_autograd, products);
        loss.backward();
      }
      CHECK(products->executed_twice() == again);
    }
  }
}

TEST_CASE("the work of a backward pass is what it keeps less", "[activation]") {
  Block block;
  block.output = torch::randn({512, 512}, torch::requires_grad());
  auto run = block.function();
  constexpr std::int64_t kProduct = 2LL * 512 * 512 * 512;
  auto work = [&](auto&& forward) {
    auto x = torch::randn({512, 512}, torch::requires_grad());
    auto loss = forward(x);
    return fabric::measure_flops([&] { loss.backward(); });
  };
  CHECK(work(run) == 6 * kProduct);
  CHECK(work([&](const at::Tensor& x) { return checkpoint(selective(), run, x); }) == 7 * kProduct);
  CHECK(work([&](const at::Tensor& x) { return checkpoint({.early_stop = false}, run, x); }) == 9 * kProduct);
  CHECK(work([&](const at::Tensor& x) { return checkpoint(run, x); }) == 8 * kProduct);  // ends before the last
}

TEST_CASE("a region keeps nothing, and gives the same numbers with dropout and autocast", "[activation]") {
  torch::nn::Sequential net(torch::nn::Linear(32, 64), torch::nn::ReLU(), torch::nn::Dropout(0.5),
                            torch::nn::Linear(64, 8), torch::nn::Tanh());
  auto gradients = [&](bool with, const CheckpointOptions& options, bool cast) {
    net->zero_grad();
    torch::manual_seed(4);
    auto x = torch::linspace(-1, 1, 96).view({3, 32}).requires_grad_();
    at::Tensor out;
    {
      at::autocast::set_autocast_enabled(c10::kCPU, cast);
      out = with ? checkpoint(
                       options, [net](const at::Tensor& in) mutable { return net->forward(in); }, x)
                 : net->forward(x);
      at::autocast::set_autocast_enabled(c10::kCPU, false);
      at::autocast::clear_cache();
    }
    torch::rand({3});  // the generator goes on
    out.to(torch::kFloat).square().sum().backward();
    std::vector<at::Tensor> all{out.detach(), x.grad()};
    for (auto& parameter : net->parameters()) all.push_back(parameter.grad().clone());
    all.push_back(torch::rand({3}));
    return all;
  };
  for (bool cast : {false, true}) {
    auto expected = gradients(false, {}, cast);
    for (const auto& options : {CheckpointOptions{}, CheckpointOptions{.early_stop = false}, selective()}) {
      auto found = gradients(true, options, cast);
      for (std::size_t i = 0; i < found.size(); ++i) CHECK(torch::equal(found[i], expected[i]));
    }
  }
}

TEST_CASE("regions inside of regions, several inputs and results, no gradient", "[activation]") {
  auto w = torch::randn({8, 8}, torch::requires_grad());
  auto inner = [w](const at::Tensor& x, double scale) { return torch::tanh(x.mm(w)) * scale; };
  auto outer = [inner](const std::vector<at::Tensor>& in, double scale) {
    auto a = checkpoint(inner, in[0], scale), b = checkpoint(inner, in[1], 2.0);
    return std::pair<at::Tensor, at::Tensor>(torch::sigmoid(a), a * b);
  };
  auto plain = [w](const std::vector<at::Tensor>& in, double scale) {
    auto a = torch::tanh(in[0].mm(w)) * scale, b = torch::tanh(in[1].mm(w)) * 2.0;
    return std::pair<at::Tensor, at::Tensor>(torch::sigmoid(a), a * b);
  };
  std::vector<at::Tensor> in{torch::randn({4, 8}, torch::requires_grad()), torch::randn({4, 8})};
  auto gradients = [&](auto&& run) {
    w.mutable_grad().reset();
    in[0].mutable_grad().reset();
    auto [a, b] = run(in, 3.0);
    (a.sum() + b.square().sum()).backward();
    return std::pair(w.grad().clone(), in[0].grad().clone());
  };
  auto expected = gradients(plain);
  auto found = gradients([&](const auto& inputs, double scale) { return checkpoint(outer, inputs, scale); });
  CHECK(torch::equal(found.first, expected.first));
  CHECK(torch::equal(found.second, expected.second));
  // The graph may be gone through twice.
  auto x = torch::randn({4, 8}, torch::requires_grad());
  auto loss = checkpoint(inner, x, 1.0).sum();
  loss.backward({}, /*retain_graph=*/true);
  auto once = x.grad().clone();
  loss.backward();
  CHECK(torch::allclose(x.grad(), 2 * once));
  torch::NoGradGuard no_grad;
  CHECK_FALSE(checkpoint(inner, x, 1.0).requires_grad());
}

TEST_CASE("what a region does wrong is said", "[activation]") {
  auto w = torch::randn({8, 8}, torch::requires_grad());
  auto x = torch::randn({4, 8}, torch::requires_grad());
  int runs = 0;
  auto unsteady = [w, &runs](const at::Tensor& in) {
    return ++runs % 2 ? torch::tanh(in.mm(w)) : torch::tanh(in.slice(0, 0, 2).mm(w)).repeat({2, 1});
  };
  CHECK_THROWS_WITH(checkpoint(unsteady, x).sum().backward(), Contains("must do the same both times"));
  auto fails = [](const at::Tensor& in) -> at::Tensor {
    torch::tanh(in);
    throw std::runtime_error("in the middle");
  };
  CHECK_THROWS_WITH(checkpoint(fails, x), "in the middle");
  auto twice = checkpoint(
      selective(), [w](const at::Tensor& in) { return in.mm(w).tanh().mm(w).sum(); }, x);
  twice.backward({}, /*retain_graph=*/true);
  CHECK_THROWS_WITH(twice.backward(), Contains("second backward pass"));
  auto changed = torch::randn({4, 8}, torch::requires_grad());
  auto base = changed * 1;
  auto late = checkpoint([w](const at::Tensor& in) { return in.mm(w).tanh().sum(); }, base);
  base.add_(1);
  CHECK_THROWS_WITH(late.backward(), Contains("modified by an inplace operation"));
  // All of it leaves the thread as it was.
  auto good = checkpoint([w](const at::Tensor& in) { return in.mm(w).tanh().sum(); }, x);
  CHECK_NOTHROW(good.backward());
}

TEST_CASE("operators by name, and a report of what was kept", "[activation]") {
  CHECK_THROWS_WITH(selective_saving({.save = {"aten::convolutoin"}}), Contains("did you mean 'aten::convolution'"));
  auto names = fabric::default_saved_operators();
  CHECK(std::find(names.begin(), names.end(), "aten::_scaled_dot_product_flash_attention_for_cpu") != names.end());
  auto report = std::make_shared<fabric::CheckpointReport>();
  auto options = selective();
  options.report = report;
  auto w = torch::randn({8, 8}, torch::requires_grad());
  auto x = torch::randn({4, 8}, torch::requires_grad());
  checkpoint(
      options, [w](const at::Tensor& in) { return in.mm(w).tanh().mm(w).relu().sum(); }, x)
      .backward();
  CHECK(report->operators.at("aten::mm").saved == 1);
  CHECK(report->operators.at("aten::mm").recomputed == 1);
  CHECK(report->operators.at("aten::tanh").recomputed == 1);
  CHECK(report->saved_bytes() == 4 * 8 * 4);
}

#include <fabric/strategies/dp.h>

#include "strategies/ddp/ddp_test_support.h"

using namespace ddp_test;

namespace {

struct PairNetImpl : torch::nn::Cloneable<PairNetImpl> {
  PairNetImpl() { reset(); }
  void reset() override {
    first = register_module("first", torch::nn::Linear(6, 8));
    second = register_module("second", torch::nn::Linear(8, 3));
  }
  // Several inputs and outputs of any type.
  std::tuple<at::Tensor, std::vector<at::Tensor>> forward(const at::Tensor& x, double factor, const at::Tensor& bias) {
    auto hidden = torch::tanh(first(x));
    if (fails) throw std::runtime_error("on purpose");
    return {second(hidden) * factor + bias, {hidden, hidden.mean()}};
  }
  at::Tensor loss(const at::Tensor& x) { return second(first(x)); }
  torch::nn::Linear first{nullptr}, second{nullptr};
  bool fails = false;
};
TORCH_MODULE(PairNet);

std::shared_ptr<fabric::DataParallelStrategy> make_dp(size_t devices) {
  auto strategy = std::make_shared<fabric::DataParallelStrategy>(std::vector<c10::Device>(devices, c10::kCPU));
  strategy->set_precision(std::make_shared<fabric::Precision>());
  return strategy;
}

}  // namespace

TEST_CASE("dp gives the gradients of one device", "[dp]") {
  PairNet net;
  auto model = wrap(make_dp(3), net);
  auto x = torch::randn({8, 6}), bias = torch::randn({3});
  for (int64_t rows : {8, 7, 2, 1}) {
    auto part = x.slice(0, 0, rows);
    net->zero_grad();
    auto [out, rest] = model(part, 2.0, bias);
    REQUIRE(out.sizes() == std::vector<int64_t>{rows, 3});
    CHECK(rest[0].size(0) == rows);
    CHECK(rest[1].dim() == 1);
    CHECK(part.size(0) == rows);  // the caller's tensor is as before
    (out.pow(2).sum() + rest[0].sum()).backward();
    std::vector<at::Tensor> split;
    for (auto& param : net->parameters()) split.push_back(param.grad().clone());
    net->zero_grad();
    auto [whole, hidden] = net->forward(part, 2.0, bias);
    CHECK(torch::allclose(whole, out, 1e-5, 1e-6));
    (whole.pow(2).sum() + hidden[0].sum()).backward();
    for (size_t i = 0; i < split.size(); ++i) CHECK(torch::allclose(split[i], net->parameters()[i].grad(), 1e-4, 1e-6));
  }
  auto y = model.call(&PairNetImpl::loss, x);
  CHECK(torch::allclose(y, net->loss(x), 1e-5, 1e-6));
}

TEST_CASE("dp trains the module that the optimizer knows", "[dp]") {
  torch::manual_seed(3);
  PairNet net;
  auto model = wrap(make_dp(2), net);
  torch::optim::SGD optimizer(net->parameters(), 0.1);
  auto x = torch::randn({8, 6}), y = torch::randn({8, 3});
  double first = 0, last = 0;
  for (int step = 0; step < 50; ++step) {
    optimizer.zero_grad();
    auto loss = torch::mse_loss(std::get<0>(model(x, 1.0, torch::zeros({3}))), y);
    loss.backward();
    optimizer.step();
    last = loss.item<double>();
    if (step == 0) first = last;
  }
  CHECK(last < first / 2);
}

TEST_CASE("dp reports what it cannot split, copy or run", "[dp]") {
  auto strategy = make_dp(2);
  Net plain;  // no Cloneable
  auto model = wrap(strategy, plain);
  CHECK_THROWS_WITH(model(torch::randn({4, 6}, at::kDouble)), Catch::Contains("Cloneable"));
  PairNet net;
  auto pair = wrap(strategy, net);
  CHECK_THROWS_AS(pair(torch::tensor(1.0), 1.0, torch::tensor(1.0)), fabric::MisuseError);
  struct Opaque {
    at::Tensor hidden;
  };
  CHECK_THROWS_WITH(
      pair.call([](PairNetImpl& m, const Opaque& o) { return m.loss(o.hidden); }, Opaque{torch::ones({2, 6})}),
      Catch::Contains("FABRIC_TENSORS"));
  CHECK_THROWS_WITH(
      pair.call([](PairNetImpl& m, const at::Tensor& x) { return Opaque{m.loss(x)}; }, torch::ones({2, 6})),
      Catch::Contains("FABRIC_TENSORS"));
  net->fails = true;
  CHECK_THROWS_WITH(pair(torch::ones({2, 6}), 1.0, torch::zeros({3})), "on purpose");
  CHECK_THROWS_AS(strategy->set_devices({}), fabric::ConfigError);
}

TEST_CASE("dp needs no launch and reduces over a tensor's own elements", "[dp]") {
  auto strategy = make_dp(2);
  CHECK_FALSE(strategy->requires_launch());
  CHECK(strategy->is_global_zero());
  CHECK_FALSE(strategy->sampler_shard().has_value());
  auto t = torch::tensor({1.0, 3.0});
  CHECK(strategy->all_reduce(t, fabric::ReduceOp::mean).item<double>() == 2.0);
  auto same = strategy->all_reduce(t, fabric::ReduceOp::sum);
  CHECK((torch::equal(same, t) && !same.is_same(t)));
  auto integers = torch::tensor({1, 4});
  strategy->all_reduce_(integers, fabric::ReduceOp::mean);
  CHECK(integers.item<int64_t>() == 2);
  CHECK(strategy->batch_to_device(t).is_same(t));
}

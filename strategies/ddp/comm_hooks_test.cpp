#include <torch/csrc/distributed/c10d/comm.hpp>

#include <fabric/strategies/ddp_comm_hooks.h>

#include "strategies/ddp/ddp_test_support.h"

using namespace ddp_test;
using fabric::Choice;
using fabric::CommHook;

namespace {

// One backward pass; returns the gradients after and, averaged exactly, before the hook.
struct Reduced {
  std::vector<at::Tensor> given, exact;
  double worst() const {
    double worst = 0;
    for (size_t i = 0; i < given.size(); ++i) worst = std::max(worst, (given[i] - exact[i]).abs().max().item<double>());
    return worst;
  }
};

template <class Model>
Reduced reduce(const std::shared_ptr<fabric::DDPStrategy>& strategy, Net& net, const Model& model, const at::Tensor& x,
               const fabric::ProcessGroup& group) {
  Reduced result;
  net->zero_grad();
  auto weights = torch::linspace(1, 2, 3, x.scalar_type());
  strategy->backward((model(x) * weights).pow(2).mean(), nullptr);
  for (auto& param : net->parameters()) result.given.push_back(param.grad().clone());
  net->zero_grad();
  {
    auto local = model.strategy_module().no_backward_sync(true);
    strategy->backward((model(x) * weights).pow(2).mean(), nullptr);
  }
  for (auto& param : net->parameters()) {
    result.exact.push_back(param.grad().clone());
    group.all_reduce_(result.exact.back(), fabric::ReduceOp::mean);
  }
  return result;
}

double error_of_hook(const fabric::ProcessGroup& group, fabric::DDPStrategy::Config config) {
  torch::manual_seed(3);
  auto strategy = make_ddp(group, std::move(config));
  Net net(at::kFloat);
  auto model = wrap(strategy, net);
  torch::manual_seed(5 + group.rank());
  double worst = 0;
  for (int step = 0; step < 3; ++step)
    worst = std::max(worst, reduce(strategy, net, model, torch::randn({4, 6}), group).worst());
  return worst;
}

// Sends nothing until every second call; counts.
class CountingHook : public CommHook {
 public:
  CountingHook(const fabric::ProcessGroup& group, std::int64_t factor) : group_(group), factor_(factor) {}
  Future run(c10d::GradBucket& bucket) override {
    ++calls_;
    std::vector<at::Tensor> tensors{bucket.getBuffer()};
    tensors[0].mul_(factor_).div_(group_.size());
    return group_.c10d()->allreduce(tensors)->getFuture();
  }
  fabric::Value state_dict() const override { return fabric::Value::Map{{"calls", calls_}}; }

 private:
  fabric::ProcessGroup group_;
  std::int64_t factor_;
  std::int64_t calls_ = 0;
};

}  // namespace

BOTH_BACKENDS_TEST("communication hooks reduce gradients as exactly as they promise", "[ddp][hooks]", 2) {
  auto group = join_group();
  RANK_CHECK(error_of_hook(group, {.comm_hook = "allreduce"}) < 1e-7);
  double half = error_of_hook(group, {.comm_hook = "fp16_compress"});
  RANK_CHECK(half > 1e-7 && half < 2e-3);
  double brain = error_of_hook(group, {.comm_hook = "bf16_compress"});
  RANK_CHECK(brain > half && brain < 2e-2);
  double wrapped = error_of_hook(group, {.comm_hook_wrapper = "fp16"});
  RANK_CHECK(wrapped > 1e-7 && wrapped < 2e-3);
  RANK_CHECK(error_of_hook(group, {.comm_hook = "allreduce", .comm_hook_wrapper = "bf16"}) < 2e-2);
  RANK_CHECK(error_of_hook(group, {.bucket_cap_mb = 0,
                                   .first_bucket_mb = 0,
                                   .gradient_as_bucket_view = false,
                                   .comm_hook = "fp16_compress"}) < 2e-3);
}

RANKS_TEST("a user's communication hook is used, with its settings and state", "[ddp][hooks]", 2) {
  auto group = join_group();
  fabric::register_comm_hook("counting", [](const fabric::ProcessGroup& g, const fabric::Tree& params) {
    const auto* factor = params.find("factor");
    return std::make_shared<CountingHook>(g, factor ? factor->as_int() : 1);
  });
  RANK_CHECK(!error_of<fabric::ConfigError>([] {
                fabric::register_comm_hook("counting", [](auto&&...) { return std::shared_ptr<CommHook>(); });
              }).empty());
  auto strategy = make_ddp(group, {.comm_hook = Choice("counting", {{"factor", 3}})});
  Net net;
  auto model = wrap(strategy, net);
  auto result = reduce(strategy, net, model, torch::randn({4, 6}, at::kDouble) + rank, group);
  for (auto& exact : result.exact) exact.mul_(3);
  RANK_CHECK(result.worst() < 1e-12);
  RANK_CHECK(strategy->comm_hook(model.strategy_module())->state_dict().at("calls").as_int() == 1);
  // A hook that fails is the user's own error.
  fabric::register_comm_hook("failing", [](const fabric::ProcessGroup&, const fabric::Tree&) {
    struct Failing : CommHook {
      Future run(c10d::GradBucket&) override { throw std::invalid_argument("mine"); }
    };
    return std::make_shared<Failing>();
  });
  auto failing = make_ddp(group, {.comm_hook = "failing"});
  Net other;
  auto broken = wrap(failing, other);
  RANK_CHECK(error_of<std::invalid_argument>([&] {
               failing->backward(broken(torch::randn({2, 6}, at::kDouble)).sum(), nullptr);
             }) == "mine");
}

namespace {

Choice powersgd(std::int64_t rank, std::int64_t start, bool feedback) {
  return Choice("powersgd", {{"matrix_approximation_rank", rank},
                             {"start_powersgd_iter", start},
                             {"min_compression_rate", 0.5},
                             {"use_error_feedback", feedback}});
}

// Fits a linear map; returns the last loss.
double fit(const fabric::ProcessGroup& group, Choice hook) {
  torch::manual_seed(11);
  auto strategy = make_ddp(group, {.comm_hook = std::move(hook)});
  torch::nn::Linear net(12, 10);
  net->to(at::kDouble);
  auto model = wrap(strategy, net);
  torch::optim::SGD optimizer(net->parameters(), 0.05);
  auto target = torch::randn({12, 10}, at::kDouble);
  torch::manual_seed(20 + group.rank());
  double last = 0;
  for (int step = 0; step < 300; ++step) {
    auto x = torch::randn({32, 12}, at::kDouble);
    strategy->zero_grad(optimizer, true);
    auto loss = (model(x) - x.matmul(target)).pow(2).sum(1).mean();
    strategy->backward(loss, nullptr);
    strategy->optimizer_step(optimizer, nullptr);
    last = loss.item<double>();
  }
  RANK_CHECK(equal_on_all_ranks(*net, group));
  return last;
}

}  // namespace

BOTH_BACKENDS_TEST("powersgd sends gradients of low rank exactly and loses nothing over time", "[ddp][hooks]", 2) {
  auto group = join_group();
  // A batch of one row per rank makes weight gradients of rank 2 together.
  auto strategy = make_ddp(group, {.comm_hook = powersgd(2, 2, true)});
  Net net(at::kDouble, 20, 16, 3);
  auto model = wrap(strategy, net);
  torch::manual_seed(5 + rank);
  for (int step = 0; step < 4; ++step)
    RANK_CHECK(reduce(strategy, net, model, torch::randn({1, 20}, at::kDouble), group).worst() < 1e-10);

  // Plain averaging first, lossy afterwards.
  auto one = make_ddp(group, {.comm_hook = powersgd(1, 2, true)});
  Net lossy(at::kDouble, 20, 16, 3);
  auto compressed = wrap(one, lossy);
  auto x = torch::randn({8, 20}, at::kDouble);
  RANK_CHECK(reduce(one, lossy, compressed, x, group).worst() < 1e-12);
  RANK_CHECK(reduce(one, lossy, compressed, x, group).worst() < 1e-12);
  // Error feedback: of the same gradient again and again, the mean of what arrives comes ever closer to it.
  at::Tensor sum = torch::zeros({16, 20}, at::kDouble);
  double first = 0, last = 0;
  for (int step = 1; step <= 60; ++step) {
    auto result = reduce(one, lossy, compressed, x, group);
    sum += result.given[0];
    last = (sum / step - result.exact[0]).norm().item<double>() / result.exact[0].norm().item<double>();
    if (step == 1) first = last;
  }
  RANK_CHECK(first > 0.05);
  RANK_CHECK(last < first / 5);
  // Its state carries over.
  auto state = one->comm_hook(compressed.strategy_module())->state_dict();
  auto again = fabric::make_comm_hook(powersgd(1, 2, true), "", group);
  again->load_state_dict(state);
  RANK_CHECK(fabric::to_string(again->state_dict()) == fabric::to_string(state));
}

RANKS_TEST("powersgd trains to where plain averaging does", "[ddp][hooks]", 2) {
  auto group = join_group();
  double plain = fit(group, "allreduce"), with_feedback = fit(group, powersgd(2, 2, true));
  RANK_CHECK(plain < 1e-8);
  RANK_CHECK(with_feedback < 1e-3);
  auto bad = error_of<fabric::ConfigError>([&] { fabric::make_comm_hook(powersgd(1, 0, true), "", group); });
  RANK_CHECK(contains(bad, "start_powersgd_iter"));
  RANK_CHECK(!error_of<fabric::ConfigError>([&] { fabric::make_comm_hook("powersgt", "", group); }).empty());
  RANK_CHECK(!error_of<fabric::ConfigError>([&] {
                fabric::make_comm_hook(Choice("fp16_compress", {{"rank", 1}}), "", group);
              }).empty());
}

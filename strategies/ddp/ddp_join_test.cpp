#include "strategies/ddp/ddp_test_support.h"

using namespace ddp_test;

namespace {

// Rank r has 3 + 2·(world − 1 − r) batches. The reference: one model, each step averaging the gradients of those that
// have data, the others counting as zero, or not counting.
void train_uneven(const fabric::ProcessGroup& group, fabric::DDPStrategy::Config config, bool divide_by_initial) {
  int world = group.size();
  auto batches = [&](int r) { return 3 + 2 * (world - 1 - r); };
  auto batch = [](int r, int step) { return torch::sin(torch::arange(24, at::kDouble) * (1 + r) + step).view({4, 6}); };
  torch::manual_seed(4);
  auto strategy = make_ddp(group, std::move(config));
  Net net, alone;
  auto model = wrap(strategy, net);
  {
    torch::NoGradGuard no_grad;
    for (size_t i = 0; i < net->parameters().size(); ++i) alone->parameters()[i].copy_(net->parameters()[i]);
  }
  torch::optim::SGD optimizer(net->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
  torch::optim::SGD reference(alone->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
  fabric::JoinControl::Options options{.divide_by_initial_world_size = divide_by_initial, .optimizers = {&optimizer}};
  for (int epoch = 0; epoch < 2; ++epoch) {
    strategy->join({&model.strategy_module()}, options, [&] {
      for (int step = 0; step < batches(group.rank()); ++step) {
        strategy->zero_grad(optimizer, true);
        strategy->backward(model(batch(group.rank(), step)).pow(2).mean(), nullptr);
        strategy->optimizer_step(optimizer, nullptr);
      }
    });
    for (int step = 0; step < batches(0); ++step) {
      reference.zero_grad();
      int training = 0;
      for (int r = 0; r < world; ++r) training += step < batches(r);
      for (int r = 0; r < world; ++r)
        if (step < batches(r))
          (alone->forward(batch(r, step)).pow(2).mean() / (divide_by_initial ? world : training)).backward();
      reference.step();
    }
    RANK_CHECK(equal_on_all_ranks(*net, group));
    RANK_CHECK(max_difference(*net, *alone) < 1e-12);
  }
  // Even steps afterwards go on as usual.
  strategy->zero_grad(optimizer, true);
  strategy->backward(model(batch(group.rank(), 0)).sum(), nullptr);
  strategy->optimizer_step(optimizer, nullptr);
  RANK_CHECK(equal_on_all_ranks(*net, group));
}

void check_uneven() {
  auto group = join_group(20);
  train_uneven(group, {}, true);
  train_uneven(group, {}, false);
  train_uneven(group, {.bucket_cap_mb = 0, .first_bucket_mb = 0, .gradient_as_bucket_view = false}, true);
  train_uneven(group, {.find_unused_parameters = true}, true);
  train_uneven(group, {.comm_hook = "allreduce"}, false);
}

}  // namespace

BOTH_BACKENDS_TEST("ranks with less data join those with more", "[ddp][join]", 2) { check_uneven(); }
RANKS_TEST("ranks with less data join, three ranks", "[ddp][join]", 3) { check_uneven(); }

BOTH_BACKENDS_TEST("join covers buffers, several models and accumulation", "[ddp][join]", 2) {
  auto group = join_group(20);
  struct NormImpl : torch::nn::Module {
    NormImpl() : norm(register_module("norm", torch::nn::BatchNorm1d(6))) { to(at::kDouble); }
    at::Tensor forward(const at::Tensor& x) { return norm(x); }
    torch::nn::BatchNorm1d norm;
  };
  auto strategy = make_ddp(group);
  auto norm = std::make_shared<NormImpl>();
  torch::nn::ModuleHolder<NormImpl> holder(norm);
  Net net;
  auto first = wrap(strategy, holder);
  auto second = wrap(strategy, net);
  auto params = norm->parameters();
  for (auto& param : net->parameters()) params.push_back(param);
  torch::optim::SGD optimizer(params, 0.1);
  int steps = rank == 1 ? 7 : 2;  // rank 0, which sends the buffers, ends first
  strategy->join({&first.strategy_module(), &second.strategy_module()}, {.optimizers = {&optimizer}}, [&] {
    for (int step = 0; step < steps; ++step) {
      auto x = torch::randn({4, 6}, at::kDouble);
      {
        auto local = second.strategy_module().no_backward_sync(true);
        auto local_first = first.strategy_module().no_backward_sync(true);
        strategy->backward(second(first(x)).sum(), nullptr);
      }
      strategy->backward(second(first(x)).pow(2).sum() + second(x).sum(), nullptr);
      strategy->optimizer_step(optimizer, nullptr);
      strategy->zero_grad(optimizer, true);
    }
  });
  RANK_CHECK(equal_on_all_ranks(*norm, group) && equal_on_all_ranks(*net, group));
  RANK_CHECK(norm->norm->num_batches_tracked.item<int64_t>() >= 14);
}

RANKS_TEST("join reports what it cannot do", "[ddp][join]", 2) {
  auto group = join_group(20);
  auto strategy = make_ddp(group);
  Net net, other;
  auto model = wrap(strategy, net);
  auto unlisted = wrap(strategy, other);
  auto x = torch::randn({4, 6}, at::kDouble);
  auto train = [&](int steps) {
    for (int step = 0; step < steps; ++step) strategy->backward(model(x).sum(), nullptr);
  };
  auto early = error_of<fabric::MismatchError>([&] {
    strategy->join({&model.strategy_module()}, {.throw_on_early_termination = true}, [&] { train(2 + rank); });
  });
  RANK_CHECK(contains(early, "without more data: 0"));
  auto missing =
      error_of<fabric::MisuseError>([&] { strategy->join({&model.strategy_module()}, {}, [&] { unlisted(x); }); });
  RANK_CHECK(contains(missing, "not listed"));
  RANK_CHECK(!error_of<fabric::MisuseError>([&] { strategy->join({}, {}, [] {}); }).empty());
  auto fixed = make_ddp(group, {.static_graph = true});
  auto static_model = wrap(fixed, other);
  RANK_CHECK(contains(error_of<fabric::MisuseError>([&] { fixed->join({&static_model.strategy_module()}, {}, [] {}); }),
                      "static_graph"));
  // Ranks that do different things are told so.
  Net third;
  auto odd = wrap(strategy, third);
  auto different = error_of<fabric::MismatchError>([&] {
    strategy->join({&model.strategy_module(), &odd.strategy_module()}, {},
                   [&] { strategy->backward((rank == 0 ? model(x) : odd(x)).sum(), nullptr); });
  });
  RANK_CHECK(contains(different, "something else"));
}

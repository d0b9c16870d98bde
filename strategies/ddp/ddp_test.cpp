#include <fabric/state/tie.h>
#include <fabric/strategies/registry.h>
#include <fabric/strategies/single_device.h>

#include "strategies/ddp/ddp_test_support.h"

using namespace ddp_test;
using fabric::DDPStrategy;

namespace {

// Trains over the ranks and, on each rank alone, on the joined batch; returns the largest difference of a parameter.
double train_both(const fabric::ProcessGroup& group, DDPStrategy::Config config, at::ScalarType type, int accumulate) {
  torch::manual_seed(1 + group.rank());  // ranks start apart: setup must bring them together
  auto strategy = make_ddp(group, std::move(config));
  Net net(type);
  auto model = wrap(strategy, net);
  Net alone(type);
  {
    torch::NoGradGuard no_grad;
    for (size_t i = 0; i < net->parameters().size(); ++i) alone->parameters()[i].copy_(net->parameters()[i]);
  }
  torch::optim::AdamW together(net->parameters(), 1e-2), reference(alone->parameters(), 1e-2);
  torch::manual_seed(7);
  int64_t rows = 4 * group.size();
  for (int step = 0; step < 50; ++step) {
    if (step % 3 == 0)
      strategy->zero_grad(together, step % 2 == 0);
    else if (step % 3 == 1)
      together.zero_grad(step % 2 == 0);
    else
      net->zero_grad(step % 2 == 0);
    reference.zero_grad();
    for (int part = 0; part < accumulate; ++part) {
      auto x = torch::randn({rows, 6}, type), y = torch::randn({rows, 3}, type);
      {
        fabric::Scope local = model.strategy_module().no_backward_sync(part + 1 < accumulate);
        auto out = model(share(x, group.rank(), group.size()));
        strategy->backward(torch::mse_loss(out, share(y, group.rank(), group.size())), nullptr);
      }
      torch::mse_loss(alone->forward(x), y).backward();
    }
    strategy->optimizer_step(together, nullptr);
    reference.step();
  }
  RANK_CHECK(equal_on_all_ranks(*net, group));
  return max_difference(*net, *alone);
}

void check_parity() {
  auto group = join_group();
  struct Case {
    const char* name;
    DDPStrategy::Config config;
    int accumulate = 1;
  };
  for (const Case& c :
       {Case{"defaults", {}}, Case{"copies", {.gradient_as_bucket_view = false}},
        Case{"small buckets", {.bucket_cap_mb = 0, .first_bucket_mb = 0}}, Case{"static graph", {.static_graph = true}},
        Case{"unused", {.find_unused_parameters = true}}, Case{"allreduce hook", {.comm_hook = "allreduce"}},
        Case{"accumulation", {}, 3}, Case{"accumulation, copies", {.gradient_as_bucket_view = false}, 3},
        Case{"accumulation, unused, static", {.find_unused_parameters = true, .static_graph = true}, 2}}) {
    std::string failure;
    try {
      double exact = train_both(group, c.config, at::kDouble, c.accumulate);
      double single = train_both(group, c.config, at::kFloat, c.accumulate);
      if (exact > 1e-12) failure = "in double by " + std::to_string(exact * 1e12) + "e-12";
      if (single > 1e-5) failure = "in float by " + std::to_string(single);
    } catch (const std::exception& error) {
      failure = error.what();
    }
    if (!failure.empty()) throw std::runtime_error(std::string(c.name) + ": " + failure);
  }
}

}  // namespace

BOTH_BACKENDS_TEST("ddp over two ranks trains as one process on the joined batch", "[ddp]", 2) { check_parity(); }
RANKS_TEST("ddp over three ranks trains as one process on the joined batch", "[ddp]", 3) { check_parity(); }

namespace {

struct BranchImpl : torch::nn::Module {
  BranchImpl()
      : left(register_module("left", torch::nn::Linear(4, 2))),
        right(register_module("right", torch::nn::Linear(4, 2))) {
    to(at::kDouble);
  }
  at::Tensor forward(const at::Tensor& x, bool go_left) { return go_left ? left(x) : right(x); }
  std::pair<at::Tensor, at::Tensor> both(const at::Tensor& x) { return {left(x), right(x)}; }
  struct Opaque {
    at::Tensor hidden;
  };
  Opaque opaque(const at::Tensor& x) { return {left(x)}; }
  torch::nn::Linear left, right;
};
TORCH_MODULE(Branch);

}  // namespace

BOTH_BACKENDS_TEST("ddp finds parameters that got no gradient", "[ddp]", 2) {
  auto group = join_group();
  auto x = torch::ones({3, 4}, at::kDouble) * (rank + 1);
  {
    Branch net;
    auto strategy = make_ddp(group, {.find_unused_parameters = true});
    auto model = wrap(strategy, net);
    strategy->backward(model(x, true).sum(), nullptr);
    RANK_CHECK(!net->right->weight.grad().defined());
    RANK_CHECK(std::abs(net->left->weight.grad()[0][0].item<double>() - 4.5) < 1e-12);
    // Each rank another branch: both get the mean.
    net->zero_grad();
    strategy->backward(model(x, rank == 0).sum(), nullptr);
    RANK_CHECK(std::abs(net->left->weight.grad()[0][0].item<double>() - 1.5) < 1e-12);
    RANK_CHECK(std::abs(net->right->weight.grad()[0][0].item<double>() - 3.0) < 1e-12);
    // An output that the loss does not use.
    net->zero_grad();
    auto [a, b] = model.call(&BranchImpl::both, x);
    strategy->backward(a.sum(), nullptr);
    RANK_CHECK(std::abs(net->left->weight.grad()[0][0].item<double>() - 4.5) < 1e-12);
    // A second backward pass over the same graph is reduced as well.
    net->zero_grad();
    auto loss = model(x, true).sum();
    loss.backward({}, /*retain_graph=*/true);
    strategy->backward(loss, nullptr);
    RANK_CHECK(std::abs(net->left->weight.grad()[0][0].item<double>() - 9.0) < 1e-12);
    auto text = error_of<fabric::MisuseError>([&] { model.call(&BranchImpl::opaque, x); });
    RANK_CHECK(contains(text, "FABRIC_TENSORS"));
  }
  {
    Branch net;
    auto strategy = make_ddp(group);
    auto model = wrap(strategy, net);
    torch::optim::SGD optimizer(net->parameters(), 0.1);
    strategy->backward(model(x, true).sum(), nullptr);
    auto at_step = error_of<fabric::MisuseError>([&] { strategy->optimizer_step(optimizer, nullptr); });
    RANK_CHECK(contains(at_step, "right.weight") && contains(at_step, "find_unused_parameters"));
    auto at_forward = error_of<fabric::MisuseError>([&] { model(x, true); });
    RANK_CHECK(contains(at_forward, "2 parameters (right.weight, right.bias)"));
  }
}

RANKS_TEST("ddp reports a model that was called around its wrapper", "[ddp]", 2) {
  auto group = join_group();
  auto x = torch::randn({3, 6}, at::kDouble);
  auto strategy = make_ddp(group);
  Net net, other;
  auto model = wrap(strategy, net);
  auto second = wrap(strategy, other);
  torch::optim::SGD optimizer(net->parameters(), 0.1), other_optimizer(other->parameters(), 0.1);

  auto text = error_of<fabric::MisuseError>([&] { strategy->backward(net->forward(x).sum(), nullptr); });
  RANK_CHECK(contains(text, "model(x)") && contains(text, "first.weight"));
  net->zero_grad();
  net->forward(x).sum().backward();
  RANK_CHECK(error_of<fabric::MisuseError>([&] { strategy->optimizer_step(other_optimizer, nullptr); }).empty());
  RANK_CHECK(contains(error_of<fabric::MisuseError>([&] { strategy->optimizer_step(optimizer, nullptr); }), "wrapper"));

  // Nothing of this is misuse: plain backward, several forward passes per backward and the other way round, evaluation
  // around the wrapper, two models in one loss, training one through the other.
  net->zero_grad();
  for (int step = 0; step < 3; ++step) {
    model(x).sum().backward();
    auto a = model(x).sum(), b = model(2 * x).sum();
    strategy->backward(a + b, nullptr);
    auto c = model(x).sum(), d = model(x * (rank + 1)).sum();
    strategy->backward(c, nullptr);
    strategy->backward(d, nullptr);
    strategy->optimizer_step(optimizer, nullptr);
    RANK_CHECK(equal_on_all_ranks(*net, group));
    {
      torch::NoGradGuard no_grad;
      net->forward(x);
    }
    strategy->backward((model(x) - second(x)).pow(2).sum(), nullptr);
    strategy->optimizer_step(optimizer, nullptr);
    strategy->backward((model(x).detach() - second(x)).pow(2).sum(), nullptr);
    strategy->optimizer_step(other_optimizer, nullptr);
    strategy->zero_grad(optimizer, true);
    strategy->zero_grad(other_optimizer, true);
  }
  RANK_CHECK(equal_on_all_ranks(*net, group) && equal_on_all_ranks(*other, group));
  // Other methods count as calls of the model; first.* alone is used by this one.
  auto unused = error_of<fabric::MisuseError>([&] {
    strategy->backward(model.call(&NetImpl::hidden, x).sum(), nullptr);
    strategy->optimizer_step(optimizer, nullptr);
  });
  RANK_CHECK(contains(unused, "second.weight"));
}

RANKS_TEST("ddp refuses ranks with different parameters, on every rank", "[ddp]", 2) {
  auto group = join_group();
  auto strategy = make_ddp(group);
  Net wide(at::kDouble, 6, rank == 0 ? 8 : 9);
  auto shapes = error_of<fabric::MismatchError>([&] { strategy->setup_module(wide.ptr()); });
  RANK_CHECK(contains(shapes, "first.weight") && contains(shapes, "[8, 6]") && contains(shapes, "[9, 6]"));
  Net types(rank == 0 ? at::kDouble : at::kFloat);
  RANK_CHECK(contains(error_of<fabric::MismatchError>([&] { strategy->setup_module(types.ptr()); }), "Float"));
  Net frozen;
  frozen->second->bias.requires_grad_(rank == 0);
  RANK_CHECK(contains(error_of<fabric::MismatchError>([&] { strategy->setup_module(frozen.ptr()); }), "second.bias"));
  torch::nn::Sequential deeper(torch::nn::Linear(2, 2));
  if (rank == 1) deeper->push_back(torch::nn::Linear(2, 2));
  RANK_CHECK(contains(error_of<fabric::MismatchError>([&] { strategy->setup_module(deeper.ptr()); }), "nothing more"));
  // Parameters where no backend of the group can go. The meta device stands for a GPU here.
  struct ElsewhereImpl : torch::nn::Module {
    ElsewhereImpl() { register_parameter("weight", torch::ones({2}, torch::device(torch::kMeta))); }
  };
  auto unsynced = make_ddp(group, {.init_sync = false});
  auto elsewhere = std::make_shared<ElsewhereImpl>();
  auto carrier = error_of<fabric::ConfigError>([&] { unsynced->setup_module(elsewhere, {.move_to_device = false}); });
  RANK_CHECK(contains(carrier, "model is on meta") && contains(carrier, "'" + group.backend() + "'") &&
             contains(carrier, "nccl"));
  // The group is as good as before.
  Net good;
  auto model = wrap(strategy, good);
  RANK_CHECK(equal_on_all_ranks(*good, group));
}

BOTH_BACKENDS_TEST("ddp keeps buffers equal", "[ddp]", 2) {
  auto group = join_group();
  auto make = [] {
    torch::nn::Sequential net(torch::nn::Linear(4, 4), torch::nn::BatchNorm1d(4), torch::nn::Linear(4, 1));
    net->to(at::kDouble);
    return net;
  };
  auto strategy = make_ddp(group);
  auto net = make();
  auto core = strategy->setup_module(net.ptr());
  auto model = fabric::FabricModule<torch::nn::SequentialImpl>(
      net.ptr(), std::make_shared<fabric::detail::ModuleCore>(
                     strategy, std::move(core), std::make_shared<std::atomic<int>>(0), c10::Device(c10::kCPU)));
  auto forward = [&](const at::Tensor& x) {
    return model.call([](torch::nn::SequentialImpl& m, const at::Tensor& t) { return m.forward(t); }, x);
  };
  auto statistics = [&] { return net->named_buffers()["1.running_mean"]; };
  auto x = torch::randn({8, 4}, at::kDouble) + 3 * rank;
  // Two forward passes before one backward pass: the buffers change under the first one's graph.
  auto first = forward(x);
  strategy->backward((first + forward(x + 1)).sum(), nullptr);
  RANK_CHECK(equal_on_all_ranks(*net, group));
  RANK_CHECK(statistics().abs().sum().item<double>() > 0);
  net->eval();
  if (rank == 0) {
    torch::NoGradGuard no_grad;
    forward(x);  // alone: no other rank is needed
  }
  net->train();
  auto silent = make_ddp(group, {.broadcast_buffers = false});
  auto own = make();
  auto core2 = silent->setup_module(own.ptr());
  fabric::FabricModule<torch::nn::SequentialImpl> separate(
      own.ptr(), std::make_shared<fabric::detail::ModuleCore>(
                     silent, std::move(core2), std::make_shared<std::atomic<int>>(0), c10::Device(c10::kCPU)));
  separate.call([](torch::nn::SequentialImpl& m, const at::Tensor& t) { return m.forward(t); }, x);
  RANK_CHECK(!equal_on_all_ranks(*own, group));
}

namespace {

struct TiedImpl : torch::nn::Module {
  TiedImpl()
      : embed(register_module("embed", torch::nn::Embedding(torch::nn::EmbeddingOptions(10, 4).sparse(true)))),
        inner(register_module("inner", torch::nn::Linear(4, 4))) {
    scale = register_parameter("scale", torch::ones({4}));
    register_parameter("alias", scale);
  }
  at::Tensor forward(const at::Tensor& ids) { return inner(inner(embed(ids)) * scale); }
  torch::nn::Embedding embed;
  torch::nn::Linear inner;
  at::Tensor scale;
};
TORCH_MODULE(Tied);

}  // namespace

BOTH_BACKENDS_TEST("ddp takes tied and sparse parameters, and modules that move after setup", "[ddp]", 2) {
  auto group = join_group();
  auto strategy = make_ddp(group);
  Tied net;
  auto model = wrap(strategy, net);
  auto ids = torch::arange(3) + 2 * rank;
  strategy->backward(model(ids).sum(), nullptr);
  auto gradient = net->embed->weight.grad().to_dense();
  group.all_reduce_(gradient, fabric::ReduceOp::mean);
  RANK_CHECK(torch::allclose(gradient, net->embed->weight.grad().to_dense()));
  RANK_CHECK(gradient[2].abs().sum().item<double>() > 0 && gradient[5].abs().sum().item<double>() == 0);

  Net moved(at::kFloat);
  auto second = wrap(strategy, moved);
  strategy->backward(second(torch::randn({2, 6})).sum(), nullptr);
  moved->zero_grad();
  moved->to(at::kDouble);
  auto train = [&] {
    for (int step = 0; step < 2; ++step) {
      moved->zero_grad();
      strategy->backward(second(torch::randn({2, 6}, at::kDouble) + rank).sum(), nullptr);
      for (const auto& param : moved->parameters()) {
        auto own = param.grad().clone(), mean = own.clone();
        group.all_reduce_(mean, fabric::ReduceOp::mean);
        RANK_CHECK(torch::allclose(own, mean));
      }
    }
    moved->zero_grad();
  };
  train();
  // Some of them alone, and back to where they were.
  moved->second->to(at::kFloat);
  moved->second->to(at::kDouble);
  train();
}

RANKS_TEST("ddp follows parameters that are frozen and thawed after setup, once it is told", "[ddp]", 2) {
  auto group = join_group();
  for (bool views : {true, false}) {
    Net net(at::kDouble), single(at::kDouble);
    auto strategy = make_ddp(group, {.gradient_as_bucket_view = views});
    auto model = wrap(strategy, net);
    {
      torch::NoGradGuard no_grad;
      for (std::size_t i = 0; i < net->parameters().size(); ++i) single->parameters()[i].copy_(net->parameters()[i]);
    }
    auto x = torch::arange(24, at::kDouble).reshape({4, 6}) / 24;
    auto step = [&] {
      for (auto* module : {net.get(), single.get()}) module->zero_grad();
      strategy->backward(model(share(x, rank, 2)).square().mean(), nullptr);
      single(x).square().mean().backward();
      for (std::size_t i = 0; i < net->parameters().size(); ++i) {
        const auto& mine = net->parameters()[i].grad();
        RANK_CHECK(mine.defined() == net->parameters()[i].requires_grad());
        if (mine.defined()) RANK_CHECK(torch::allclose(mine, single->parameters()[i].grad(), 1e-12, 1e-14));
      }
    };
    auto freeze = [&](bool frozen) {
      for (auto* module : {net.get(), single.get()})
        for (auto& parameter : module->first->parameters()) {
          parameter.set_requires_grad(!frozen);
          if (frozen) parameter.mutable_grad() = at::Tensor();
        }
      model.parameters_changed();
    };
    step();
    freeze(true);
    step();
    step();
    freeze(false);
    step();
    // Ranks that froze different parameters are told apart, on every rank.
    if (rank == 1) net->second->bias.set_requires_grad(false);
    RANK_CHECK(contains(error_of<fabric::MismatchError>([&] { model.parameters_changed(); }), "second.bias"));
    for (auto& parameter : net->parameters()) parameter.set_requires_grad(false);
    model.parameters_changed();
    RANK_CHECK(!model(x).requires_grad());
    for (auto& parameter : net->parameters()) parameter.set_requires_grad(true);
    model.parameters_changed();
    step();
  }
}

RANKS_TEST("ddp says so when it was not told that parameters were frozen or thawed", "[ddp]", 2) {
  auto group = join_group();
  auto strategy = make_ddp(group);
  auto x = torch::ones({3, 6}, at::kDouble);
  Net net;
  net->second->bias.set_requires_grad(false);
  auto model = wrap(strategy, net);
  net->second->bias.set_requires_grad(true);
  auto thawed = error_of<fabric::MisuseError>([&] { model(x); });
  RANK_CHECK(contains(thawed, "second.bias") && contains(thawed, "parameters_changed()"));
  model.parameters_changed();
  torch::optim::SGD optimizer(net->parameters(), 0.1);
  for (auto& parameter : net->first->parameters()) parameter.set_requires_grad(false);
  strategy->backward(model(x).sum(), nullptr);
  auto frozen = error_of<fabric::MisuseError>([&] { strategy->optimizer_step(optimizer, nullptr); });
  RANK_CHECK(contains(frozen, "2 parameters (first.weight, first.bias)") && contains(frozen, "parameters_changed()"));
}

RANKS_TEST("ddp runs modules without a parameter that is trained", "[ddp]", 2) {
  auto group = join_group();
  auto strategy = make_ddp(group);
  struct TeacherImpl : torch::nn::Module {
    TeacherImpl() {
      register_module("norm", norm);
      for (auto& parameter : parameters()) parameter.set_requires_grad(false);
      to(at::kDouble);
    }
    at::Tensor forward(const at::Tensor& x) { return norm(x); }
    torch::nn::BatchNorm1d norm{4};
  };
  torch::nn::ModuleHolder<TeacherImpl> teacher, silent;
  auto model = wrap(strategy, teacher);
  auto x = torch::randn({8, 4}, at::kDouble) + 3 * rank;
  model(x);
  model(x);
  RANK_CHECK(teacher->norm->running_mean.abs().sum().item<double>() > 0);
  RANK_CHECK(equal_on_all_ranks(*teacher, group));
  teacher->eval();
  if (rank == 0) model(x);  // alone: no other rank is needed
  teacher->train();
  struct NothingImpl : torch::nn::Module {
    at::Tensor forward(const at::Tensor& x) { return x * 2; }
  };
  torch::nn::ModuleHolder<NothingImpl> nothing;
  auto empty = wrap(strategy, nothing);
  RANK_CHECK(empty(x).equal(x * 2));
  // Beside one that is trained, inside join as well.
  Net net;
  auto student = wrap(strategy, net);
  torch::optim::SGD optimizer(net->parameters(), 0.1);
  strategy->join({&student.strategy_module(), &model.strategy_module()}, {}, [&] {
    for (int step = 0; step < 2 + rank; ++step) {
      auto target = model(torch::randn({8, 4}, at::kDouble)).slice(1, 0, 3);
      strategy->backward((student(torch::randn({8, 6}, at::kDouble)) - target).square().mean(), nullptr);
      strategy->optimizer_step(optimizer, nullptr);
      optimizer.zero_grad();
    }
  });
  RANK_CHECK(equal_on_all_ranks(*net, group) && equal_on_all_ranks(*teacher, group));
  // Thawed later, it is trained as well.
  for (auto& parameter : teacher->parameters()) parameter.set_requires_grad(true);
  model.parameters_changed();
  strategy->backward(model(x).square().sum(), nullptr);
  auto own = teacher->norm->weight.grad().clone(), mean = own.clone();
  group.all_reduce_(mean, fabric::ReduceOp::mean);
  RANK_CHECK(torch::allclose(own, mean) && own.abs().sum().item<double>() > 0);
}

RANKS_TEST("ddp names the cure for weights that were tied by an assignment", "[ddp]", 2) {
  auto group = join_group();
  struct TextImpl : torch::nn::Module {
    TextImpl() : wte(register_module("wte", torch::nn::Embedding(10, 4))) {
      lm_head = register_module("lm_head", torch::nn::Linear(torch::nn::LinearOptions(4, 10).bias(false)));
    }
    at::Tensor forward(const at::Tensor& ids) { return lm_head(wte(ids)); }
    torch::nn::Embedding wte;
    torch::nn::Linear lm_head{nullptr};
  };
  torch::nn::ModuleHolder<TextImpl> net, tied;
  auto ids = torch::tensor({1, 2}) + rank;
  {
    net->lm_head->weight = net->wte->weight;
    auto strategy = make_ddp(group);
    auto model = wrap(strategy, net);
    torch::optim::SGD optimizer(net->parameters(), 0.1);
    strategy->backward(model(ids).sum(), nullptr);
    auto text = error_of<fabric::MisuseError>([&] { strategy->optimizer_step(optimizer, nullptr); });
    RANK_CHECK(contains(text, "fabric::tie(module, \"lm_head.weight\", \"wte.weight\")"));
  }
  fabric::tie(tied, "lm_head.weight", "wte.weight");
  auto strategy = make_ddp(group);
  auto model = wrap(strategy, tied);
  for (int step = 0; step < 2; ++step) {
    tied->zero_grad();
    strategy->backward(model(ids).square().sum(), nullptr);
    auto own = tied->wte->weight.grad().clone(), mean = own.clone();
    group.all_reduce_(mean, fabric::ReduceOp::mean);
    RANK_CHECK(torch::allclose(own, mean) && own.abs().sum().item<double>() > 0);
  }
}

BOTH_BACKENDS_TEST("a static graph may use parameters several times or never", "[ddp]", 2) {
  auto group = join_group();
  struct OddImpl : torch::nn::Module {
    OddImpl()
        : twice(register_module("twice", torch::nn::Linear(4, 4))),
          never(register_module("never", torch::nn::Linear(4, 4))) {
      to(at::kDouble);
    }
    at::Tensor forward(const at::Tensor& x) { return twice(torch::tanh(twice(x))); }
    torch::nn::Linear twice, never;
  };
  auto strategy = make_ddp(group, {.static_graph = true});
  torch::nn::ModuleHolder<OddImpl> net;
  auto model = wrap(strategy, net);
  torch::optim::SGD optimizer(net->parameters(), 0.1);
  for (int step = 0; step < 4; ++step) {
    strategy->zero_grad(optimizer, true);
    auto x = torch::sin(torch::arange(12, at::kDouble) * (step + 2) + rank).view({3, 4});
    // Two forward passes before the first backward pass.
    strategy->backward(model(x).sum() + model(x + 1).sum(), nullptr);
    auto own = net->twice->weight.grad().clone(), mean = own.clone();
    group.all_reduce_(mean, fabric::ReduceOp::mean);
    RANK_CHECK(torch::allclose(own, mean) && own.abs().sum().item<double>() > 0);
    strategy->optimizer_step(optimizer, nullptr);
  }
  RANK_CHECK(equal_on_all_ranks(*net, group));
}

// Its body is beside the averager's other tests.
TEST_CASE("ddp averages models over MPI, too", "[ddp][averaging][mpi]") {
  if (ranks::has_mpirun())
    ranks::run_and_require("ddp averages models every few steps after the warm-up", ranks::mpirun(2));
  else
    WARN("skipped: there is no mpirun");
}

TEST_CASE("ddp with one rank leaves the module alone", "[ddp]") {
  auto strategy = make_ddp(fabric::ProcessGroup::single(), {.comm_hook = "fp16_compress"});
  Net net;
  auto wrapped = strategy->setup_module(net.ptr());
  CHECK_FALSE(wrapped->intercepts_forward());
  torch::optim::SGD optimizer(net->parameters(), 0.1);
  strategy->backward(net->forward(torch::randn({2, 6}, at::kDouble)).sum(), wrapped.get());
  CHECK(net->first->weight.grad().defined());
  { auto scope = wrapped->no_backward_sync(true); }
  int runs = 0;
  strategy->join({wrapped.get()}, {}, [&] { ++runs; });
  CHECK(runs == 1);
  fabric::SingleDeviceStrategy other;
  fabric::StrategyModule foreign(other, net.ptr());
  CHECK_THROWS_AS(strategy->comm_hook(foreign), fabric::MisuseError);
  CHECK_THROWS_AS(strategy->join({&foreign}, {}, [] {}), fabric::MisuseError);
}

TEST_CASE("ddp checks its settings", "[ddp]") {
  CHECK_THROWS_AS(DDPStrategy({.bucket_cap_mb = -1}), fabric::ConfigError);
  CHECK_THROWS_AS(DDPStrategy({.start_method = "forkserver"}), fabric::ConfigError);
  CHECK_THROWS_AS(DDPStrategy({.model_averaging_period = -2}), fabric::ConfigError);
  CHECK_THROWS_WITH(DDPStrategy({.comm_hook = "fp16_compres"}), Catch::Contains("fp16_compress"));
  CHECK_THROWS_AS(DDPStrategy({.comm_hook_wrapper = "fp8"}), fabric::ConfigError);
}

TEST_CASE("ddp is registered under all its names", "[ddp]") {
  auto& registry = fabric::StrategyRegistry::instance();
  for (const char* name : {"ddp", "ddp_find_unused_parameters_true", "ddp_spawn", "ddp_fork", "ddp_notebook"})
    CHECK(registry.get(name)->name() == "ddp");
  auto config = [&](const char* name, fabric::Tree params = fabric::Tree::Map{}) {
    return std::static_pointer_cast<DDPStrategy>(registry.get(name, params))->config();
  };
  CHECK(config("ddp").start_method == "auto");
  CHECK(config("ddp_find_unused_parameters_true").find_unused_parameters);
  CHECK(config("ddp_spawn").start_method == "spawn");
  CHECK(config("ddp_fork").start_method == "fork");
  CHECK(config("ddp_notebook").start_method == "fork");
  CHECK(config("ddp", fabric::Tree::Map{{"bucket_cap_mb", 5}}).bucket_cap_mb == 5);
  CHECK_THROWS_WITH(registry.get("ddp", fabric::Tree::Map{{"bucket_cap", 5}}), Catch::Contains("bucket_cap_mb"));
}

// What a pass may do: use parameters twice, not at all, elsewhere, again; fail; be one of several.
#include <fabric/strategies/activation.h>

#include "strategies/fsdp/fsdp_test_support.h"

using namespace fsdp_test;
using fabric::Tree;

namespace {

struct NetImpl : torch::nn::Module {
  NetImpl() {
    in = register_module("in", torch::nn::Linear(4, 6));
    blocks = register_module("blocks", torch::nn::ModuleList(torch::nn::Linear(6, 6), torch::nn::Linear(6, 6)));
    left = register_module("left", torch::nn::Linear(6, 3));
    right = register_module("right", torch::nn::Linear(6, 3));
    gain = register_parameter("gain", torch::ones({}));
    to(at::kDouble);
  }
  at::Tensor block(int i, const at::Tensor& x) { return torch::tanh(blocks[i]->as<torch::nn::Linear>()->forward(x)); }
  at::Tensor encode(const at::Tensor& x) { return block(1, block(0, torch::tanh(in(x)))) * gain; }
  at::Tensor forward(const at::Tensor& x) { return left(encode(x)); }
  at::Tensor both(const at::Tensor& x) { return left(encode(x)) + right(encode(x)); }
  at::Tensor branch(const at::Tensor& x, bool go_left) { return go_left ? left(encode(x)) : right(encode(x)); }
  // A view of a parameter, a parameter in several operators, two units in one operator.
  at::Tensor odd(const at::Tensor& x) {
    auto flat = in->weight.view({24}).slice(0, 0, 4);
    return forward(x * flat) + torch::addmm(right->bias, encode(x), left->weight.t()) + in->weight.detach().sum();
  }
  at::Tensor backwards(const at::Tensor& x) { return left(block(0, block(1, torch::tanh(in(x))))); }
  at::Tensor computed_again(const at::Tensor& x) {
    auto hidden =
        fabric::checkpoint([this](const at::Tensor& in) { return block(1, block(0, in)); }, torch::tanh(in(x)));
    return left(torch::dropout(hidden, 0.5, false));
  }
  at::Tensor fails(const at::Tensor& x) { return encode(x).mm(x); }
  torch::nn::Linear in{nullptr}, left{nullptr}, right{nullptr};
  torch::nn::ModuleList blocks{nullptr};
  at::Tensor gain;
};
TORCH_MODULE(Net);

Net make_net() {
  torch::manual_seed(3);
  return Net();
}

at::Tensor input(int seed = 0) {
  torch::manual_seed(40 + seed);
  return torch::randn({5, 4}, at::kDouble);
}

std::string text_of(const at::Tensor& tensor) {
  std::ostringstream text;
  tensor.defined() ? text << ' ' << tensor.flatten().slice(0, 0, 6) : text << " none";
  return text.str();
}

// A sharded model and the same in one process, to which the same is done.
struct Pair {
  explicit Pair(Fabric& fabric) : fabric(fabric), model(fabric.setup(make_net())) {}
  void clear() {
    model->zero_grad();
    alone->zero_grad();
  }
  template <class Method, class... Args>
  void pass(Method method, const Args&... args) {
    fabric.backward(model.call(method, args...).square().sum());
    std::invoke(method, *alone, args...).square().sum().backward();
  }
  // Gradients, whole, are those of one process; nothing stays gathered.
  void check(const char* what) {
    require_let_go(what);
    auto whole = fabric::summon(model, {.with_gradients = true});
    auto names = model->named_parameters();
    for (const auto& item : alone->named_parameters()) {
      const auto& expected = item.value().grad();
      const auto& gradient = names[item.key()].grad();
      if (expected.defined() != gradient.defined() ||
          (expected.defined() && !torch::allclose(gradient, expected, 1e-10, 1e-12)))
        throw std::runtime_error(std::string(what) + ": the gradient of " + item.key() + " is another" +
                                 text_of(expected) + " and not" + text_of(gradient));
    }
  }
  void require_let_go(const char* what) {
    if (model->in->weight.size(0) != 3 || model->blocks[0]->as<torch::nn::Linear>()->weight.size(0) != 3)
      throw std::runtime_error(std::string(what) + ": something stays gathered");
  }
  Fabric& fabric;
  fabric::FabricModule<NetImpl> model;
  Net alone = make_net();
};

void check_passes(const char* sharding) {
  Fabric fabric(settings(2, Tree::Map{{"sharding_strategy", sharding}}));
  fabric.launch();
  Pair pair(fabric);
  auto x = input();
  auto each = [&](const char* what, auto&& run) {
    pair.clear();
    run();
    pair.check(what);
  };
  each("forward", [&] { pair.pass(&NetImpl::forward, x); });
  each("unused parameters are used now", [&] { pair.pass(&NetImpl::both, x); });
  each("another order", [&] { pair.pass(&NetImpl::backwards, x); });
  each("views and mixed units", [&] { pair.pass(&NetImpl::odd, x); });
  each("a region that is computed again", [&] { pair.pass(&NetImpl::computed_again, x); });
  each("another method", [&] { pair.pass(&NetImpl::encode, x); });
  each("two backward passes add up", [&] {
    pair.pass(&NetImpl::forward, x);
    pair.pass(&NetImpl::both, input(1));
  });
  each("two forward passes, one backward pass", [&] {
    pair.fabric.backward(pair.model(x).sum() + pair.model.call(&NetImpl::both, input(1)).square().sum());
    (pair.alone->forward(x).sum() + pair.alone->both(input(1)).square().sum()).backward();
  });
  each("two forward passes, then their backward passes", [&] {
    auto a = pair.model(x).sum(), b = pair.model.call(&NetImpl::both, input(1)).square().sum();
    fabric.backward(a);
    fabric.backward(b);
    (pair.alone->forward(x).sum() + pair.alone->both(input(1)).square().sum()).backward();
  });
  each("a plain backward pass", [&] {
    pair.model(x).sum().backward();
    pair.alone->forward(x).sum().backward();
  });
  each("the graph is gone through twice", [&] {
    auto a = pair.model(x).square().sum(), b = pair.alone->forward(x).square().sum();
    fabric.backward(a, {.retain_graph = true});
    fabric.backward(a);
    b.backward({}, true);
    b.backward();
  });
  each("double backward", [&] {
    auto penalty = [&](auto&& forward) {
      auto leaf = input().requires_grad_();
      auto gradient = torch::autograd::grad({forward(leaf).square().sum()}, {leaf}, {}, true, true)[0];
      return gradient.square().sum();
    };
    fabric.backward(penalty([&](const at::Tensor& leaf) { return pair.model(leaf); }));
    penalty([&](const at::Tensor& leaf) { return pair.alone->forward(leaf); }).backward();
  });
  each("an evaluation in between", [&] {
    auto loss = pair.model(x).square().sum();
    {
      torch::NoGradGuard no_grad;
      pair.model(input(1));
    }
    fabric.backward(loss);
    pair.alone->forward(x).square().sum().backward();
  });
  {
    torch::NoGradGuard no_grad;
    auto a = pair.model(x), b = pair.alone->forward(x);
    RANK_CHECK(torch::allclose(a, b, 1e-12, 1e-12));
    pair.require_let_go("no_grad");
  }
  {
    c10::InferenceMode inference;
    RANK_CHECK(torch::allclose(pair.model(x), pair.alone->forward(x), 1e-12, 1e-12));
    pair.require_let_go("inference");
  }
  // An exception in a forward and in a backward pass.
  RANK_CHECK(!error_of([&] { pair.model.call(&NetImpl::fails, x); }).empty());
  pair.require_let_go("failed forward");
  RANK_CHECK(has(error_of([&] {
                   auto y = pair.model.call(
                       [](NetImpl& net, const at::Tensor& in) {
                         auto hidden = net.encode(in);
                         hidden.register_hook(
                             [](const at::Tensor&) -> at::Tensor { throw std::runtime_error("mid-pass"); });
                         return net.left(hidden);
                       },
                       x);
                   fabric.backward(y.sum());
                 }),
                 "mid-pass"));
  pair.require_let_go("failed backward");
  each("after exceptions", [&] { pair.pass(&NetImpl::forward, x); });
  // Each rank another branch: the mean.
  pair.clear();
  fabric.backward(pair.model.call(&NetImpl::both, x).sum() * 0 +
                  pair.model.call(&NetImpl::branch, x, true).sum() * (fabric.global_rank() + 1));
  (pair.alone->both(x).sum() * 0 + pair.alone->branch(x, true).sum() * 1.5).backward();
  pair.check("ranks weigh differently");
}

}  // namespace

RANKS_TEST("fsdp follows whatever a pass does", "[fsdp]", 2) {
  at::set_num_threads(1);
  check_passes("FULL_SHARD");
  check_passes("SHARD_GRAD_OP");
}

RANKS_TEST("a parameter that only some ranks use gets the mean, one that none uses nothing", "[fsdp]", 2) {
  at::set_num_threads(1);
  // One unit, so that every rank gathers it.
  Fabric fabric(settings(2, Tree::Map{{"auto_wrap_policy", "none"}}));
  fabric.launch();
  Pair pair(fabric);
  auto x = input();
  fabric.backward(pair.model.call(&NetImpl::branch, x, rank == 0).sum());
  ((pair.alone->branch(x, true).sum() + pair.alone->branch(x, false).sum()) / 2).backward();
  pair.check("branches");
  pair.clear();
  fabric.backward(pair.model.call(&NetImpl::encode, x).sum());
  RANK_CHECK(!pair.model->left->weight.grad().defined());
  // With units of their own the ranks would wait for one another in different collectives.
  Fabric other(settings(2, Tree::Map{{"wrap", Tree::List{"left", "right"}}}));
  other.launch();
  auto model = other.setup(make_net());
  auto text = error_of([&] { model.call(&NetImpl::branch, x, rank == 0); });
  RANK_CHECK(has(text, "left") && has(text, "right") && has(text, "gather of parameters"));
}

RANKS_TEST("whole parameters are lent out, and pieces refuse to be read", "[fsdp]", 2) {
  at::set_num_threads(1);
  Fabric fabric(settings(2));
  fabric.launch();
  Pair pair(fabric);
  auto& model = pair.model;
  auto refused = error_of([&] { model->in->weight.sum(); });
  RANK_CHECK(has(refused, "summon") && has(refused, "'in'"));
  RANK_CHECK(has(error_of([&] { model.module()->forward(input()); }), "summon"));
  {
    auto whole = fabric::summon(model, {.write_back = true});
    RANK_CHECK(torch::equal(model->in->weight, pair.alone->in->weight));
    torch::NoGradGuard no_grad;
    model->in->weight.fill_(2);
    RANK_CHECK(model(input()).size(1) == 3);  // evaluation goes on
    RANK_CHECK(has(error_of([&] {
                     torch::AutoGradMode with_grad(true);
                     model(input());
                   }),
                   "summon"));
    RANK_CHECK(has(error_of([&] { fabric.save("/nonexistent/x", {{"model", model}}); }), "summon"));
  }
  {
    auto whole = fabric::summon(model);
    RANK_CHECK(model->in->weight.eq(2).all().item<bool>());
    torch::NoGradGuard no_grad;
    model->in->weight.fill_(3);
  }
  {
    auto whole = fabric::summon(model, {.rank_zero_only = true});
    RANK_CHECK((model->in->weight.size(0) == 6) == (rank == 0));
    if (rank == 0) RANK_CHECK(model->in->weight.eq(2).all().item<bool>());
  }
  RANK_CHECK(has(error_of([&] { auto s = fabric::summon(model, {.write_back = true, .rank_zero_only = true}); }),
                 "exclude each other"));
  auto again = error_of([&] { fabric.setup(model.module()); });
  RANK_CHECK(has(again, "set up already") || has(again, "sharded already"));
}

RANKS_TEST("parameters are frozen and thawed under fsdp", "[fsdp]", 2) {
  at::set_num_threads(1);
  Fabric fabric(settings(2));
  fabric.launch();
  Pair pair(fabric);
  auto freeze = [&](bool frozen) {
    for (auto* net : {pair.model.module().get(), pair.alone.get()}) {
      for (auto& parameter : net->in->parameters()) parameter.set_requires_grad(!frozen);
      net->blocks[0]->as<torch::nn::Linear>()->bias.set_requires_grad(!frozen);
    }
  };
  freeze(true);
  pair.model.parameters_changed();
  pair.pass(&NetImpl::forward, input());
  pair.check("frozen");
  freeze(false);
  RANK_CHECK(has(error_of([&] { pair.model(input()); }), "parameters_changed()"));
  pair.model.parameters_changed();
  pair.clear();
  pair.pass(&NetImpl::forward, input());
  pair.check("thawed");
  // Frozen before setup, and for good.
  auto other = make_net();
  for (auto& parameter : other->parameters()) parameter.set_requires_grad(false);
  auto model = fabric.setup(other);
  RANK_CHECK(torch::allclose(model(input()), make_net()->forward(input()), 1e-12, 1e-12));
}

RANKS_TEST("several models, units by policy, and what is ignored", "[fsdp]", 2) {
  at::set_num_threads(1);
  auto x = input();
  for (const Tree::Map& params :
       {Tree::Map{{"auto_wrap_policy", "size"}, {"min_num_params", 30}},
        Tree::Map{{"wrap", Tree::List{"blocks.*", "in"}}}, Tree::Map{{"wrap", Tree::List{"Linear"}}}}) {
    Fabric fabric(settings(2, params));
    fabric.launch();
    Pair pair(fabric);
    pair.pass(&NetImpl::both, x);
    pair.check("policy");
  }
  fabric::FSDPStrategy::Config config;
  config.wrap_if = fabric::Unit<torch::nn::LinearImpl>();
  Fabric::Parts parts;
  parts.strategy = std::make_shared<fabric::FSDPStrategy>(config);
  Fabric fabric({.accelerator = "cpu", .devices = 2}, parts);
  fabric.launch();
  // As in a GAN: each is trained through the other.
  Pair first(fabric), second(fabric);
  torch::nn::Linear bridge(torch::nn::LinearOptions(3, 4).bias(false));
  bridge->to(at::kDouble);
  torch::nn::init::eye_(bridge->weight);
  for (int i = 0; i < 2; ++i) {
    first.clear();
    second.clear();
    fabric.backward(second.model(bridge(first.model(x))).sum());
    second.alone->forward(bridge(first.alone->forward(x))).sum().backward();
    first.check("generator");
    second.check("discriminator");
  }
  auto fails = [&](Tree::Map params) {
    return error_of([&] {
      Fabric wrong(settings(2, std::move(params)));
      wrong.launch();
      wrong.setup(make_net());
    });
  };
  RANK_CHECK(has(fails(Tree::Map{{"wrap", Tree::List{"blokcs"}}}), "blokcs"));
  RANK_CHECK(has(fails(Tree::Map{{"ignored", Tree::List{"nothing"}}}), "nothing"));
  RANK_CHECK(has(fails(Tree::Map{{"sharding_strategy", "FULL"}}), "FULL_SHARD"));
  RANK_CHECK(has(fails(Tree::Map{{"use_orig_params", false}}), "use_orig_params"));
  RANK_CHECK(has(fails(Tree::Map{{"device_mesh", Tree::List{1, 2}}}), "HYBRID_SHARD"));
  Fabric with_ignored(settings(2, Tree::Map{{"ignored", Tree::List{"left", "gain"}}}));
  with_ignored.launch();
  auto model = with_ignored.setup(make_net());
  RANK_CHECK(model->left->weight.size(0) == 3 && model->in->weight.size(0) == 3 && model->left->weight.sum().defined());
}

RANKS_TEST("models are built without storage and filled unit by unit", "[fsdp]", 2) {
  at::set_num_threads(1);
  fabric::FSDPStrategy::Config config;
  config.reset_parameters = [](torch::nn::Module& module) {
    torch::NoGradGuard no_grad;
    for (auto& tensor : module.parameters(false)) tensor.fill_(0.5);
    for (auto& tensor : module.buffers(false)) tensor.fill_(0.25);
  };
  for (bool by_function : {false, true}) {
    Fabric::Parts parts;
    if (by_function) parts.strategy = std::make_shared<fabric::FSDPStrategy>(config);
    Fabric fabric(
        by_function ? Fabric::Config{.accelerator = "cpu", .devices = 2} : settings(2, Tree::Map{}, "32-true"), parts);
    fabric.launch();
    torch::nn::Sequential layers{nullptr};
    Text text{nullptr};
    {
      auto on_meta = fabric.init_module(/*empty_init=*/true);
      layers = torch::nn::Sequential(torch::nn::Linear(6, 9), torch::nn::BatchNorm1d(9), torch::nn::Linear(9, 3));
      text = Text(5);
    }
    RANK_CHECK(layers[0]->as<torch::nn::Linear>()->weight.is_meta() && text->single.is_meta());
    auto fill = error_of([&] {
      auto [model, optimizer] = fabric.setup(text, adamw);
      auto ids = batch(0, 0, rank, 2);
      fabric.backward(loss_of(model(ids), ids));
      optimizer.step();
      RANK_CHECK(text->offset.eq(0.25).all().item<bool>());
    });
    RANK_CHECK(by_function ? fill.empty() : has(fill, "reset_parameters") && has(fill, "TextImpl"));
    auto [model, optimizer] = fabric.setup(layers, adamw);
    auto before = model->parameters()[0].size(0);
    RANK_CHECK(before == (rank == 0 ? 5 : 4));
    auto out = model(torch::ones({2, 6}));
    RANK_CHECK(out.isfinite().all().item<bool>());
    fabric.backward(out.sum());
    optimizer.step();
    auto whole = fabric::summon(model);
    auto weight = model->parameters()[0].detach().clone();
    auto others = fabric.broadcast(Value(weight)).as<at::Tensor>();
    RANK_CHECK(torch::equal(weight, others) && weight.abs().sum().item<double>() > 0);
  }
}

RANKS_TEST("fsdp refuses optimizers over other tensors, and knows whole shapes in a pass", "[fsdp]", 2) {
  at::set_num_threads(1);
  Fabric fabric(settings(2));
  fabric.launch();
  auto net = make_net();
  torch::optim::SGD stale(net->parameters(), 0.1);
  auto replaced = make_net();  // its parameters are not those that the optimizer was made over
  RANK_CHECK(has(error_of([&] { fabric.setup(replaced, stale); }), "no parameters of a model"));
  RANK_CHECK(replaced->in->weight.size(0) == 6);  // nothing was changed
  torch::nn::Embedding embedding(torch::nn::EmbeddingOptions(10, 4).padding_idx(9));
  auto model = fabric.setup(embedding);
  auto ids = torch::arange(10);
  auto out = model(ids);
  RANK_CHECK(out.size(0) == 10 && embedding->weight.size(0) == 10);
  fabric.backward(out.sum());
  RANK_CHECK(embedding->weight.size(0) == 5);
  RANK_CHECK(embedding->weight.grad()[4].eq(rank == 0 ? 1 : 0).all().item<bool>());
}

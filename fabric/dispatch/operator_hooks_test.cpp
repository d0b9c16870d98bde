#include <fabric/dispatch/operator_hooks.h>

#include <ATen/ThreadLocalState.h>
#include <torch/library.h>
#include <torch/torch.h>

#include <algorithm>
#include <mutex>
#include <set>
#include <string>
#include <thread>

#include <fabric/base/error.h>

#include "tests/support/ranks.h"

using Catch::Contains;
using fabric::dispatch::Activation;
using fabric::dispatch::active_clients;
using fabric::dispatch::Client;
using fabric::dispatch::Level;
using fabric::dispatch::OperatorCall;

namespace {

using Names = std::vector<std::string>;

// Writes down what it sees.
struct Watcher : Client {
  explicit Watcher(std::string mark = "", Names* shared = nullptr) : mark(std::move(mark)), seen(shared) {}
  void operator_called(OperatorCall& call) override {
    {
      std::lock_guard lock(mutex);
      (seen ? *seen : own).push_back(mark + call.op().schema().name());
      threads.insert(std::this_thread::get_id());
    }
    if (before) before(call);
    call.proceed();
    if (after) after(call);
  }
  bool saw(const std::string& name) const { return std::count(own.begin(), own.end(), "aten::" + name) > 0; }
  std::string mark;
  Names* seen;
  Names own;
  std::mutex mutex;
  std::set<std::thread::id> threads;
  std::function<void(OperatorCall&)> before, after;
};

at::Tensor weight() { return torch::ones({3, 3}, torch::requires_grad()); }
const auto kX = [] { return torch::ones({2, 3}); };

bool keys_are_clean() {
  auto local = c10::impl::tls_local_dispatch_key_set();
  for (auto key : {c10::DispatchKey::DeferredInit, c10::DispatchKey::Fake})
    if (local.included_.has(key) || local.excluded_.has(key)) return false;
  return active_clients(Level::above_autograd).empty() && active_clients(Level::below_autograd).empty();
}

}  // namespace

TEST_CASE("clients see what the model writes, or what is executed", "[dispatch]") {
  auto above = std::make_shared<Watcher>(), below = std::make_shared<Watcher>();
  auto x = kX(), w = weight(), bias = torch::ones({3}, torch::requires_grad());
  auto layer = [&](const at::Tensor& input) { return torch::linear(input, w, bias); };
  const void* parameter = nullptr;
  bool had_graph = false;
  above->before = [&](OperatorCall& call) {
    if (call.op().schema().name() == "aten::linear") parameter = call.arguments()[1].toTensor().unsafeGetTensorImpl();
  };
  above->after = [&](OperatorCall& call) {
    if (call.op().schema().name() == "aten::linear") had_graph = call.results()[0].toTensor().grad_fn() != nullptr;
  };
  at::Tensor out;
  {
    Activation a(Level::above_autograd, above);
    Activation b(Level::below_autograd, below);
    out = layer(x).sum();
  }
  CHECK(above->own == Names{"aten::linear", "aten::sum"});
  CHECK(parameter == w.unsafeGetTensorImpl());
  CHECK(had_graph);
  CHECK(below->saw("addmm"));
  CHECK_FALSE(below->saw("linear"));
  auto count = below->own.size();
  out.backward();  // outside
  layer(x);
  CHECK(below->own.size() == count);
  CHECK(keys_are_clean());
}

TEST_CASE("the backward pass is seen below autograd, parts of composite operators without autograd, too",
          "[dispatch]") {
  auto below = std::make_shared<Watcher>();
  {
    auto out = kX().mm(weight()).sum();
    Activation active(Level::below_autograd, below);
    out.backward();
  }
  CHECK(below->saw("mm"));
  below->own.clear();
  {
    c10::InferenceMode inference;
    Activation active(Level::below_autograd, below);
    torch::linear(torch::ones({2, 3}), torch::ones({3, 3}), torch::ones({3}));
  }
  CHECK(below->saw("addmm"));
  CHECK_FALSE(below->saw("linear"));
}

TEST_CASE("of several clients the one activated last comes first, and none twice", "[dispatch]") {
  for (auto level : {Level::above_autograd, Level::below_autograd}) {
    Names seen;
    auto one = std::make_shared<Watcher>("1 ", &seen), two = std::make_shared<Watcher>("2 ", &seen);
    auto a = torch::ones({2, 2}), b = torch::ones({2, 2});
    {
      Activation first(level, one);
      {
        Activation second(level, two);
        Activation again(level, one);
        CHECK(active_clients(level) == std::vector<std::shared_ptr<Client>>{one, two});
        a.mm(b);
      }
      a.mm(b);
    }
    a.mm(b);
    CHECK(seen == Names{"2 aten::mm", "1 aten::mm", "1 aten::mm"});
    CHECK(keys_are_clean());
  }
  struct Kind : Watcher {
    using Watcher::Watcher;
    const void* kind() const override {
      static const char kKind = 0;
      return &kKind;
    }
  };
  auto outer = std::make_shared<Kind>(), inner = std::make_shared<Kind>();
  Activation first(Level::below_autograd, outer);
  {
    Activation second(Level::below_autograd, inner);
    torch::ones({2}).add_(1);
  }
  torch::ones({2}).mul_(1);
  CHECK(inner->saw("add_"));
  CHECK_FALSE(outer->saw("add_"));
  CHECK(outer->saw("mul_"));
}

TEST_CASE("what a client calls itself is seen by no client", "[dispatch]") {
  for (auto level : {Level::above_autograd, Level::below_autograd}) {
    auto busy = std::make_shared<Watcher>(), above = std::make_shared<Watcher>(), below = std::make_shared<Watcher>();
    busy->before = busy->after = [](OperatorCall&) { torch::ones({2}).exp(); };
    auto a = torch::ones({2, 2}), b = torch::ones({2, 2});
    {
      Activation one(Level::above_autograd, above);
      Activation two(Level::below_autograd, below);
      Activation three(level, busy);
      a.mm(b);
    }
    CHECK(above->own == Names{"aten::mm"});
    CHECK(below->own == Names{"aten::mm"});  // the kernel's level is on again behind the client above
    CHECK(busy->own == Names{"aten::mm"});
  }
}

TEST_CASE("exceptions of clients and kernels pass, and leave everything as it was", "[dispatch]") {
  auto a = torch::ones({2, 2}), b = torch::ones({3, 2});
  for (auto level : {Level::above_autograd, Level::below_autograd}) {
    auto outer = std::make_shared<Watcher>(), inner = std::make_shared<Watcher>();
    {
      Activation one(level, outer);
      Activation two(level, inner);
      CHECK_THROWS_AS(a.mm(b), c10::Error);
      inner->after = [](OperatorCall&) { throw std::runtime_error("after"); };
      CHECK_THROWS_WITH(a.mm(a), "after");
      inner->before = [](OperatorCall&) { throw std::runtime_error("before"); };
      CHECK_THROWS_WITH(a.mm(a), "before");
      inner->before = inner->after = nullptr;
      outer->own.clear();
      CHECK(a.mm(a).sum().item<double>() == 8);
      CHECK(outer->saw("mm"));
    }
    CHECK_THROWS_AS(([&] {
                      Activation one(level, outer);
                      throw std::runtime_error("body");
                    }()),
                    std::runtime_error);
    CHECK(keys_are_clean());
  }
  CHECK_THROWS_AS(Activation(Level::above_autograd, nullptr), fabric::MisuseError);
  CHECK(keys_are_clean());
}

TEST_CASE("a client may answer instead of the kernel", "[dispatch]") {
  // Keeps the products of a first pass and hands them out in a second one, as recomputation does.
  struct Replay : Client {
    void operator_called(OperatorCall& call) override {
      bool product = call.op().schema().name() == "aten::mm";
      if (product && replaying) return call.answer({kept.at(next++)});
      call.proceed();
      if (product) kept.push_back(call.results()[0].toTensor().detach());
    }
    bool replaying = false;
    std::size_t next = 0;
    std::vector<at::Tensor> kept;
  };
  auto replay = std::make_shared<Replay>();
  auto outer = std::make_shared<Watcher>();
  auto x = kX(), w = weight();
  auto run = [&] { return x.mm(w).tanh().mm(w).sum(); };
  run().backward();
  auto expected = w.grad().clone();
  w.mutable_grad().reset();
  {
    Activation one(Level::below_autograd, outer);
    Activation two(Level::below_autograd, replay);
    run();
    CHECK(replay->kept.size() == 2);
    CHECK(outer->saw("mm"));
    outer->own.clear();
    replay->replaying = true;
    auto out = run();
    CHECK_FALSE(outer->saw("mm"));
    CHECK(outer->saw("tanh"));
    replay->replaying = false;
    out.backward();
  }
  CHECK(torch::equal(w.grad(), expected));

  struct Broken : Client {
    void operator_called(OperatorCall& call) override {
      if (how == 0) return;
      if (how == 1) return call.answer({});
      call.proceed();
      call.proceed();
    }
    int how = 0;
  };
  auto broken = std::make_shared<Broken>();
  Activation active(Level::below_autograd, broken);
  CHECK_THROWS_WITH(x.mm(x.t()), Contains("neither proceeded"));
  broken->how = 1;
  CHECK_THROWS_WITH(x.exp(), Contains("with 0 results; it has 1"));
  broken->how = 2;
  CHECK_THROWS_WITH(x.exp(), Contains("which was done"));
}

namespace {

// A backward pass inside a backward pass, and so on: beyond some depth LibTorch runs them on threads of its own.
struct Nested : torch::autograd::Function<Nested> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, std::int64_t depth) {
    context->saved_data["depth"] = depth;
    return x.clone();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    auto depth = context->saved_data["depth"].toInt();
    if (depth > 0) {
      c10::AutoGradMode with_grad(true);
      auto x = torch::ones({2, 2}, torch::requires_grad());
      (Nested::apply(x, depth - 1).mm(x)).sum().backward();
    }
    return {gradients[0], at::Tensor()};
  }
};

}  // namespace

TEST_CASE("clients come along to autograd's threads and to those that take over the state", "[dispatch]") {
  for (auto level : {Level::above_autograd, Level::below_autograd}) {
    auto watcher = std::make_shared<Watcher>();
    {
      auto x = torch::ones({2, 2}, torch::requires_grad());
      auto out = Nested::apply(x, 80).sum();
      Activation active(level, watcher);
      out.backward();
    }
    CHECK(watcher->threads.size() > 1);
    watcher->threads.clear();
    {
      Activation active(level, watcher);
      std::thread([state = at::ThreadLocalState()] {
        at::ThreadLocalStateGuard guard(state);
        torch::ones({2, 2}).mm(torch::ones({2, 2}));
      }).join();
      CHECK(watcher->threads.size() == 1);
      CHECK(watcher->threads.count(std::this_thread::get_id()) == 0);
      std::thread([] { torch::ones({2, 2}).mm(torch::ones({2, 2})); }).join();
      CHECK(watcher->threads.size() == 1);
    }
    CHECK(keys_are_clean());
  }
}

TEST_CASE("threads have clients of their own", "[dispatch]") {
  std::vector<std::thread> threads;
  std::vector<std::size_t> seen(4);
  for (std::size_t i = 0; i < seen.size(); ++i)
    threads.emplace_back([&seen, i] {
      auto watcher = std::make_shared<Watcher>();
      auto a = torch::ones({2, 2});
      for (std::size_t n = 0; n < 100 * (i + 1); ++n) {
        Activation active(n % 2 ? Level::above_autograd : Level::below_autograd, watcher);
        a.mm(a);
      }
      seen[i] = watcher->own.size();
    });
  for (auto& thread : threads) thread.join();
  CHECK(seen == std::vector<std::size_t>{100, 200, 300, 400});
}

// In a process of its own, where no test has taken the keys yet.
RANKS_TEST("a key that other code handles is refused, and free again afterwards", "[dispatch]", 1) {
  auto watcher = std::make_shared<Watcher>();
  for (auto [level, key] : {std::pair{Level::above_autograd, c10::DispatchKey::DeferredInit},
                            std::pair{Level::below_autograd, c10::DispatchKey::Fake}}) {
    {
      torch::Library theirs(torch::Library::IMPL, "_", key, __FILE__, __LINE__);
      theirs.fallback(torch::CppFunction::makeFallthrough());
      std::string text;
      try {
        Activation active(level, watcher);
      } catch (const fabric::ConfigError& error) {
        text = error.what();
      }
      RANK_CHECK(text.find(c10::toString(key)) != std::string::npos);
      RANK_CHECK(text.find("only one can") != std::string::npos);
      RANK_CHECK(keys_are_clean());
      torch::ones({2}).add_(1);
    }
    Activation active(level, watcher);
    torch::ones({2}).mul_(1);
  }
  RANK_CHECK(watcher->saw("mul_") && !watcher->saw("add_"));
}

TEST_CASE("standing clients see the operators of marked tensors, of their views and of what autograd saved of them",
          "[dispatch]") {
  static auto watcher = std::make_shared<Watcher>();  // stands until the process ends
  fabric::dispatch::add_standing_client(watcher);
  auto plain = weight();
  at::Tensor content;
  {
    torch::NoGradGuard no_grad;
    content = fabric::dispatch::marked(plain.detach());
  }
  CHECK(fabric::dispatch::is_marked(content));
  CHECK_FALSE(fabric::dispatch::is_marked(fabric::dispatch::unmarked(content)));
  CHECK(content.data_ptr() == plain.data_ptr());
  // As the content of a parameter.
  auto parameter = weight();
  parameter.unsafeGetTensorImpl()->shallow_copy_from(content.getIntrusivePtr());
  CHECK(watcher->own.empty());
  auto x = kX().requires_grad_();
  auto y = torch::linear(x, parameter) * 2;
  CHECK(watcher->own == Names{"aten::linear"});
  watcher->own.clear();
  std::thread([&] { y.sum().backward(); }).join();
  CHECK(watcher->saw("mm"));
  CHECK(torch::equal(parameter.grad(), torch::full({3, 3}, 4.0)));
  CHECK(torch::equal(x.grad(), torch::full({2, 3}, 6.0)));
  watcher->own.clear();
  auto view = parameter.detach().view({9});
  CHECK(fabric::dispatch::is_marked(view));
  CHECK_FALSE(fabric::dispatch::is_marked(view.clone()));
  CHECK(watcher->own == Names{"aten::detach", "aten::view", "aten::clone"});
  // Beside a client that is active, which comes first.
  watcher->own.clear();
  auto active = std::make_shared<Watcher>();
  {
    Activation watching(Level::above_autograd, active);
    parameter.sum();
    plain.sum();
  }
  CHECK(active->own == Names{"aten::sum", "aten::sum"});
  CHECK(watcher->own == Names{"aten::sum", "aten::sum"});
  CHECK(keys_are_clean());
  watcher->before = [](OperatorCall&) { throw std::runtime_error("not now"); };
  CHECK_THROWS_WITH(parameter.sum(), "not now");
  watcher->before = nullptr;
  CHECK(keys_are_clean());
}

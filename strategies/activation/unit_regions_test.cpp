// A module whose class knows nothing of it is checkpointed unit by unit.
#include <fabric/dispatch/measure_flops.h>
#include <fabric/dispatch/operator_hooks.h>

#include <c10/core/Allocator.h>

#include <map>

#include <fabric/base/error.h>

#include "strategies/activation/products_test_support.h"
#include "strategies/activation/unit_regions_test_support.h"
#include "tests/support/catch.h"

using activation_test::Names;
using activation_test::ProductsByWeight;
using Catch::Contains;
using fabric::ConfigError;
using fabric::MisuseError;
using fabric::save_region;
using namespace regions_test;

namespace {

// Three products in series without bias, as the reference has them.
struct ToyBlockImpl : torch::nn::Module {
  ToyBlockImpl() {
    auto linear = [](int64_t in, int64_t out) {
      return torch::nn::Linear(torch::nn::LinearOptions(in, out).bias(false));
    };
    moe = register_module("moe", torch::nn::ModuleDict());
    router = torch::nn::ModuleDict();
    gate = linear(512, 512);
    router->update({{"gate", gate.ptr()}});
    moe->update({{"router", router.ptr()}});
    wq = register_module("wq", linear(512, 512));
    output = register_module("output", linear(512, 1024));
  }
  at::Tensor forward(const at::Tensor& x) { return output(wq(gate(x))); }
  torch::nn::ModuleDict moe{nullptr}, router{nullptr};
  torch::nn::Linear gate{nullptr}, wq{nullptr}, output{nullptr};
};
TORCH_MODULE(ToyBlock);

struct ToyImpl : torch::nn::Module {
  ToyImpl() { layers = register_module("layers", torch::nn::ModuleList(ToyBlock())); }
  at::Tensor forward(const at::Tensor& x) { return layers[0]->as<ToyBlock>()->forward(x).sum(); }
  ToyBlockImpl& block() { return *layers[0]->as<ToyBlock>(); }
  torch::nn::ModuleList layers{nullptr};
};
TORCH_MODULE(Toy);

std::shared_ptr<ProductsByWeight> products_of(ToyBlockImpl& block) {
  return std::make_shared<ProductsByWeight>(std::map<void*, std::string>{{block.gate->weight.data_ptr(), "gate"},
                                                                         {block.wq->weight.data_ptr(), "wq"},
                                                                         {block.output->weight.data_ptr(), "output"}});
}

// What the CPU's allocator handed out and did not get back, on this thread.
class Allocated : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, int64_t size, size_t, size_t, c10::Device) override { bytes += size; }
  bool memoryProfilingEnabled() const override { return true; }
  int64_t bytes = 0;
};

int64_t kept_after(const std::function<at::Tensor()>& forward) {
  auto allocated = std::make_shared<Allocated>();
  c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, allocated);
  auto loss = forward();
  return allocated->bytes;
}

struct PassOutcome {
  at::Tensor loss;
  std::vector<at::Tensor> gradients;
};

// `forward` returns the loss of one pass over the module.
PassOutcome outcome_of_pass(torch::nn::Module& module, const std::function<at::Tensor()>& forward) {
  module.zero_grad();
  torch::manual_seed(11);
  PassOutcome out{forward(), {}};
  out.loss.backward();
  for (const auto& parameter : module.parameters())
    out.gradients.push_back(parameter.grad().defined() ? parameter.grad().clone() : at::Tensor());
  return out;
}

void check_same_pass(const PassOutcome& found, const PassOutcome& expected) {
  CHECK(torch::equal(found.loss, expected.loss));
  for (std::size_t i = 0; i < expected.gradients.size(); ++i) {
    REQUIRE(found.gradients[i].defined() == expected.gradients[i].defined());
    if (expected.gradients[i].defined()) CHECK(torch::equal(found.gradients[i], expected.gradients[i]));
  }
}

// All modes give what the module gives by itself; returns the reports of mode full.
template <class Module>
std::vector<fabric::CheckpointReport> check_modes(Module& net, const std::function<at::Tensor()>& forward,
                                                  Config config = {}) {
  auto expected = outcome_of_pass(*net, forward);
  std::vector<fabric::CheckpointReport> reports;
  for (const char* mode : {"selective", "full"})
    for (bool reporting : {false, true}) {
      config.mode = mode;
      config.report = reporting;
      auto checkpointed = fabric::apply_activation_checkpointing(net, config);
      check_same_pass(outcome_of_pass(*net, [&] { return (*checkpointed)(forward); }), expected);
      reports = checkpointed->report();
    }
  return reports;
}

}  // namespace

TEST_CASE("of an unmodified block every second product is computed again, and those that are named", "[activation]") {
  torch::manual_seed(1);
  Toy net;
  for (const auto& [texts, again] : std::vector<std::pair<std::vector<std::string>, Names>>{
           {{}, {"wq"}}, {{"moe.router.gate"}, {"gate", "wq"}}, {{"output"}, {"wq", "output"}}}) {
    auto x = torch::randn({64, 512}, torch::requires_grad());
    auto checkpointed = fabric::apply_activation_checkpointing(net, {.mode = "selective", .recompute = texts});
    auto loss = (*checkpointed)([&] { return net->forward(x); });
    auto products = products_of(net->block());
    {
      fabric::dispatch::Activation counting(fabric::dispatch::Level::below_autograd, products);
      loss.backward();
    }
    CHECK(products->executed_twice() == again);
  }
}

TEST_CASE("work of a backward pass and memory between the passes are what each mode says", "[activation]") {
  Toy net;
  struct Row {
    Config config;
    int64_t products, megabytes;
  };
  const Config none{.mode = "none"}, full{.mode = "full", .early_stop = false};
  auto selective = [](std::vector<std::string> texts) {
    return Config{.mode = "selective", .recompute = std::move(texts)};
  };
  for (const auto& [config, products, megabytes] : std::vector<Row>{{none, 8, 2},
                                                                    {selective({}), 9, 3},
                                                                    {selective({"moe.router.gate"}), 10, 2},
                                                                    {selective({"output"}), 11, 1},
                                                                    {full, 12, 0}}) {
    auto checkpointed = fabric::apply_activation_checkpointing(net, config);
    auto x = torch::randn({512, 512}, torch::requires_grad());
    auto forward = [&] { return (*checkpointed)([&] { return net->forward(x); }); };
    auto loss = forward();
    CHECK(fabric::measure_flops([&] { loss.backward(); }) == products * 2LL * 512 * 512 * 512);
    CHECK(std::llround(static_cast<double>(kept_after(forward)) / (1 << 20)) == megabytes);
  }
}

TEST_CASE("a transformer with dropout is bitwise the same in every mode", "[activation]") {
  torch::manual_seed(2);
  Text net;
  auto ids = ids_of(0);
  auto forward = [&] { return loss_of(net->forward(ids), ids); };
  auto reports = check_modes(net, forward);
  REQUIRE(reports.size() == 3);
  CHECK(reports[1].region == "blocks.1");
  CHECK(reports[1].saved_bytes() == 0);
  CHECK(reports[1].recomputed_bytes() > 0);
  // The mask, and what comes from the block before.
  CHECK(reports[1].input_bytes == (7 * 7 + 4 * 7 * 16) * 4);
  auto plain = kept_after(forward);
  auto checkpointed = fabric::apply_activation_checkpointing(net);
  CHECK(kept_after([&] { return (*checkpointed)(forward); }) < plain / 2);
  // By class and by function.
  CHECK(fabric::apply_activation_checkpointing(net, {.units = {"Block"}})->units().size() == 3);
  CHECK(fabric::apply_activation_checkpointing(net, {.units = {"blocks.[02]"}})->units() ==
        std::vector<std::string>{"blocks.0", "blocks.2"});
  Config by_function;
  by_function.unit_if = [](const std::string& name, const torch::nn::Module&) { return name == "blocks.1"; };
  CHECK(check_modes(net, forward, by_function).size() == 1);
  // Several passes before a backward pass, and one without gradients.
  auto expected = outcome_of_pass(*net, [&] { return forward() + forward(); });
  check_same_pass(outcome_of_pass(*net, [&] { return (*checkpointed)(forward) + (*checkpointed)(forward); }), expected);
  torch::NoGradGuard no_grad;
  CHECK_FALSE((*checkpointed)(forward).requires_grad());
}

namespace {

// In-place operators, running statistics, parameters that are used again, lists, tensors without gradients.
struct OddBlockImpl : torch::nn::Module {
  OddBlockImpl() {
    first = register_module("first", torch::nn::Linear(6, 6));
    norm = register_module("norm", torch::nn::BatchNorm1d(6));
    second = register_module("second", torch::nn::Linear(6, 6));
    calls = register_buffer("calls", torch::zeros({}));
  }
  at::Tensor forward(const at::Tensor& x, at::Tensor skip) {
    calls.add_(1);
    auto y = norm(first(x) + skip).relu_();
    skip.add_(y.sum());  // which the region was given
    y = y * 1;
    y[0].mul_(2);  // through a view
    auto half = torch::cat(std::vector<at::Tensor>{y.slice(1, 0, 3), y.slice(1, 3, 6)}, 1) * torch::rand({6});
    {
      torch::NoGradGuard no_grad;
      half += torch::randn({6});
    }
    auto order = half.detach().sum(1).argsort();
    auto z = second(half.index_select(0, order));
    z = z + second(z);
    auto parts = z.unbind(1);
    return torch::stack(std::vector<at::Tensor>{parts[1], parts[0], parts[2], parts[3], parts[5], parts[4]}, 1)
               .sigmoid() +
           calls + skip;
  }
  torch::nn::Linear first{nullptr}, second{nullptr};
  torch::nn::BatchNorm1d norm{nullptr};
  at::Tensor calls;
};
TORCH_MODULE(OddBlock);

// A function with a backward pass of its own.
struct Doubled : torch::autograd::Function<Doubled> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x) {
    context->save_for_backward({x});
    return x * 2;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    return {gradients[0] * 2 + 0 * context->get_saved_variables()[0]};
  }
};

struct OddImpl : torch::nn::Module {
  OddImpl() {
    blocks = register_module("blocks", torch::nn::ModuleList(OddBlock(), OddBlock()));
    shared = register_module("shared", torch::nn::ModuleList(torch::nn::Linear(6, 6)));
    cell = register_module("cell", torch::nn::ModuleList(torch::nn::LSTM(6, 6)));
  }
  at::Tensor forward(at::Tensor x) {
    x = blocks[0]->as<OddBlock>()->forward(x, torch::zeros_like(x));
    x = Doubled::apply(x);
    x = blocks[1]->as<OddBlock>()->forward(x, x.sin());
    for (int i = 0; i < 3; ++i)
      x = torch::dropout(torch::tanh(shared[0]->as<torch::nn::Linear>()->forward(x)), 0.3, true);
    return std::get<0>(cell[0]->as<torch::nn::LSTM>()->forward(x.unsqueeze(0))).sum();
  }
  torch::nn::ModuleList blocks{nullptr}, shared{nullptr}, cell{nullptr};
};
TORCH_MODULE(Odd);

}  // namespace

TEST_CASE("what modules do beside calling operators on new tensors is right in every mode", "[activation]") {
  torch::manual_seed(3);
  Odd net;
  auto x = torch::randn({5, 6});
  auto reset = [&] {
    torch::NoGradGuard no_grad;
    for (auto& buffer : net->buffers()) buffer.zero_();
  };
  auto forward = [&] {
    reset();
    return net->forward(x.clone());
  };
  outcome_of_pass(*net, forward);
  std::vector<at::Tensor> statistics;
  for (const auto& buffer : net->buffers()) statistics.push_back(buffer.clone());
  auto reports = check_modes(net, forward);
  CHECK(reports.size() >= 6);
  // Running statistics are counted once.
  for (std::size_t i = 0; i < statistics.size(); ++i) CHECK(torch::equal(net->buffers()[i], statistics[i]));
}

TEST_CASE("a pass that fails leaves nothing behind, and regions stand within regions", "[activation]") {
  torch::manual_seed(4);
  Text net;
  auto ids = ids_of(0);
  auto forward = [&] { return loss_of(net->forward(ids), ids); };
  auto expected = outcome_of_pass(*net, forward);
  auto checkpointed = fabric::apply_activation_checkpointing(net);
  CHECK_THROWS((*checkpointed)([&] {
    return net->blocks[0]->as<regions_test::Block>()->forward(torch::randn({2, 3, 5}));
  }));
  check_same_pass(outcome_of_pass(*net, [&] { return (*checkpointed)(forward); }), expected);
  // In a region that a caller made, and the other way round.
  check_same_pass(outcome_of_pass(*net,
                                  [&] {
                                    return fabric::checkpoint(
                                        [&](const at::Tensor& codes) {
                                          return (*checkpointed)([&] { return loss_of(net->forward(codes), codes); });
                                        },
                                        ids);
                                  }),
                  expected);
  check_same_pass(
      outcome_of_pass(*net,
                      [&] {
                        return (*checkpointed)([&] {
                          auto hidden = net->tokens(ids);
                          for (const auto& block : *net->blocks)
                            hidden = fabric::checkpoint(
                                [block](const at::Tensor& in) { return block->as<regions_test::Block>()->forward(in); },
                                hidden);
                          return loss_of(net->head(net->norm(hidden)), ids);
                        });
                      }),
      expected);
  // Twice through the same graph.
  net->zero_grad();
  torch::manual_seed(11);
  auto loss = (*checkpointed)(forward);
  loss.backward({}, /*retain_graph=*/true);
  loss.backward();
  CHECK(torch::allclose(net->head->weight.grad(), 2 * expected.gradients[net->parameters().size() - 2]));
}

namespace {

struct KeepingImpl : torch::nn::Module {
  KeepingImpl() {
    layers = register_module("layers", torch::nn::ModuleList(torch::nn::Linear(8, 8), torch::nn::Linear(8, 8)));
  }
  at::Tensor forward(at::Tensor x) {
    for (const auto& layer : *layers) {
      x = layer->as<torch::nn::Linear>()->forward(x);
      {
        auto keep = save_region();
        x = torch::dropout(torch::tanh(x), 0.5, true);
      }
      x = torch::dropout(torch::sigmoid(x), 0.5, true);
    }
    return x.sum();
  }
  torch::nn::ModuleList layers{nullptr};
};
TORCH_MODULE(Keeping);

struct OperatorNames : fabric::dispatch::Client {
  void operator_called(fabric::dispatch::OperatorCall& call) override {
    ++executed[call.op().schema().name()];
    call.proceed();
  }
  std::map<std::string, int> executed;
};

}  // namespace

TEST_CASE("what is made in a save_region is kept", "[activation]") {
  torch::manual_seed(6);
  Keeping net;
  auto x = torch::randn({4, 8});
  auto forward = [&] { return net->forward(x); };
  auto reports = check_modes(net, forward);
  REQUIRE(reports.size() == 2);
  CHECK(reports[0].operators.at("aten::tanh").saved == 1);
  CHECK(reports[0].operators.at("aten::sigmoid").recomputed == 1);
  CHECK(reports[0].saved_bytes() > 0);
  for (bool named : {false, true}) {
    auto checkpointed = fabric::apply_activation_checkpointing(net);
    auto loss = named ? fabric::checkpoint([&](const at::Tensor&) { return forward(); }, x) : (*checkpointed)(forward);
    auto names = std::make_shared<OperatorNames>();
    {
      fabric::dispatch::Activation counting(fabric::dispatch::Level::below_autograd, names);
      loss.backward();
    }
    CHECK(names->executed["aten::tanh"] == 0);
    CHECK(names->executed["aten::sigmoid"] == 2);
  }
  auto expected = outcome_of_pass(*net, forward);
  check_same_pass(
      outcome_of_pass(*net, [&] { return fabric::checkpoint([&](const at::Tensor&) { return forward(); }, x); }),
      expected);
}

TEST_CASE("wrong settings of checkpointed units are errors that say what to do", "[activation]") {
  Text net;
  auto apply = [&](Config config) {
    static_cast<void>(fabric::apply_activation_checkpointing(net, std::move(config)));
  };
  CHECK_THROWS_WITH(apply({.mode = "al"}), Contains("none, full and selective"));
  CHECK_THROWS_WITH(apply({.units = {"Blok"}}), Contains("Blok") && Contains("Block"));
  CHECK_THROWS_WITH(apply({.mode = "selective", .save = {"aten::convolutoin"}}), Contains("aten::convolution"));
  CHECK_THROWS_WITH(apply({.save = {"aten::mm"}}), Contains("selective"));
  CHECK_THROWS_WITH(apply({.mode = "selective", .recompute = {"norm1"}}), Contains("blocks.0.norm1 is a"));
  Config nothing;
  nothing.unit_if = [](const std::string&, const torch::nn::Module&) { return false; };
  CHECK_THROWS_WITH(apply(nothing), Contains("no unit"));
  // A policy that counts wrongly in the second run, and kept tensors that are changed.
  struct KeepAll : fabric::SavePolicy {
    bool save(const c10::OperatorHandle&, c10::ArrayRef<c10::IValue>, c10::ArrayRef<c10::IValue>) override {
      return true;
    }
  };
  torch::nn::Sequential layers(torch::nn::Linear(4, 4), torch::nn::Tanh());
  Config keep_all;
  keep_all.policy = [] { return std::make_unique<KeepAll>(); };
  auto checkpointed = fabric::apply_activation_checkpointing(layers, keep_all);
  auto x = torch::randn({2, 4});
  auto loss = (*checkpointed)([&] { return layers->forward(x); });
  loss = loss.relu_().sum();
  CHECK_THROWS_WITH(loss.backward(), Contains("was changed in place since"));
}

#include <fabric/fabric.h>

#include <torch/torch.h>

#include <filesystem>

#include "tests/support/catch.h"

using Catch::Contains;
using fabric::Fabric;
using fabric::MisuseError;
using fabric::Value;

namespace {

struct NetImpl : torch::nn::Module {
  NetImpl() { linear = register_module("linear", torch::nn::Linear(4, 2)); }
  torch::Tensor forward(const torch::Tensor& x) { return linear(x); }
  std::pair<torch::Tensor, std::string> forward_named(torch::Tensor x, int times) {
    return {linear(x) * times, "named"};
  }
  torch::nn::Linear linear{nullptr};
};
TORCH_MODULE(Net);

// A module without a holder, with several inputs and outputs of types of its own.
struct Pair {
  torch::Tensor a, b;
  FABRIC_TENSORS(Pair, a, b)
};
struct TwoHeads : torch::nn::Module {
  TwoHeads() { linear = register_module("linear", torch::nn::Linear(4, 2)); }
  Pair forward(Pair in, double scale) { return {linear(in.a) * scale, linear(in.b)}; }
  torch::nn::Linear linear{nullptr};
};

Fabric::Config single() { return {.accelerator = "cpu", .strategy = "single_device"}; }
Fabric::Config ddp() { return {.accelerator = "cpu", .strategy = "ddp", .devices = 2}; }

// A strategy that counts what it is asked, registered from outside the library.
class Recorder : public fabric::Strategy {
 public:
  std::string name() const override { return "recorder"; }
  c10::Device root_device() const override { return c10::kCPU; }
  void set_devices(std::vector<c10::Device>) override {}
  const fabric::RankInfo& ranks() const override { return ranks_; }
  const fabric::ProcessGroup& process_group() const override { return group_; }
  bool requires_joint_setup() const override { return true; }
  bool requires_backward_call() const override { return true; }

 private:
  fabric::RankInfo ranks_;
  fabric::ProcessGroup group_ = fabric::ProcessGroup::single();
};

struct TempDir {
  std::filesystem::path path = std::filesystem::temp_directory_path() / ("fabric_test_" + std::to_string(getpid()));
  TempDir() { std::filesystem::create_directories(path); }
  ~TempDir() { std::filesystem::remove_all(path); }
};

}  // namespace

TEST_CASE("setup keeps parameter identity and returns as many as it was given", "[fabric]") {
  Fabric fabric(single());
  Net net;
  auto* weight = net->linear->weight.unsafeGetTensorImpl();
  auto model = fabric.setup(net);
  CHECK(model->linear->weight.unsafeGetTensorImpl() == weight);
  CHECK(model.module().get() == net.ptr().get());
  CHECK(fabric.models_setup() == 1);

  Net second;
  torch::optim::SGD sgd(second->parameters(), 0.1);
  auto [model2, optimizer] = fabric.setup(second, sgd);
  CHECK(optimizer.optimizer().get() == &sgd);
  Net third;
  auto adam = std::make_shared<torch::optim::Adam>(third->parameters(), 0.1);
  auto [model3, first_optimizer, second_optimizer] =
      fabric.setup(third, adam, [](auto parameters) { return torch::optim::SGD(parameters, 0.1); });
  CHECK(first_optimizer.optimizer() == adam);
  CHECK(second_optimizer.param_groups()[0].params().size() == 2);
  CHECK(fabric::is_wrapped(model3));
  CHECK_FALSE(fabric::is_wrapped(net));
}

TEST_CASE("setting up twice is an error", "[fabric]") {
  Fabric fabric(single());
  Net net;
  auto [model, optimizer] = fabric.setup(net, [](auto p) { return torch::optim::SGD(p, 0.1); });
  CHECK_THROWS_WITH(fabric.setup(model), Contains("set up already"));
  CHECK_THROWS_WITH(fabric.setup(net), Contains("set up already"));
  CHECK_THROWS_WITH(fabric.setup_module(model), Contains("set up already"));
  CHECK_THROWS_WITH(fabric.setup_optimizers(optimizer), Contains("set up already"));
}

TEST_CASE("a wrapped module takes and returns any types", "[fabric]") {
  Fabric fabric(single());
  auto model = fabric.setup(TwoHeads());
  Pair out = model(Pair{torch::ones({1, 4}), torch::zeros({1, 4})}, 2.0);
  CHECK(torch::allclose(out.b, model->linear->bias.unsqueeze(0)));

  Net net;
  auto named = fabric.setup(net);
  auto [tensor, text] = named.call(&NetImpl::forward_named, torch::ones({1, 4}), 3);
  CHECK(text == "named");
  CHECK(torch::allclose(tensor, net->forward(torch::ones({1, 4})) * 3));
  auto doubled = named.call([](NetImpl& self, torch::Tensor x) { return self.forward(x) * 2; }, torch::ones({1, 4}));
  CHECK(torch::allclose(doubled, net->forward(torch::ones({1, 4})) * 2));
}

namespace {

struct Memory {
  torch::Tensor hidden;
  int calls = 0;
  FABRIC_TENSORS(Memory, hidden)
};
struct RecurrentImpl : torch::nn::Module {
  RecurrentImpl() { cell = register_module("cell", torch::nn::Linear(4, 4)); }
  torch::Tensor forward(const torch::Tensor& x, Memory& memory) {
    ++memory.calls;
    return memory.hidden = cell(x) + memory.hidden;
  }
  torch::Tensor look(torch::Tensor& x) { return cell(x); }
  torch::Tensor count(Memory& memory, const Memory& before) {
    memory.calls = before.calls + 1;
    return cell(memory.hidden);
  }
  void keep(const torch::Tensor& x, Memory& memory) { memory.hidden = cell(x); }
  torch::nn::Linear cell{nullptr};
};
TORCH_MODULE(Recurrent);

}  // namespace

TEST_CASE("what a module changes in its arguments reaches the caller, whatever stands between", "[fabric]") {
  for (std::string precision : {"32-true", "bf16-true", "bf16-mixed"}) {
    INFO(precision);
    auto config = single();
    config.precision = precision;
    Fabric fabric(config);
    auto model = fabric.setup(Recurrent());
    auto x = torch::ones({1, 4});
    Memory memory{torch::zeros({1, 4})};
    auto out = model(x, memory);
    CHECK(memory.calls == 1);
    CHECK(torch::equal(memory.hidden, out));
    CHECK(memory.hidden.scalar_type() == torch::kFloat);
    model(x, memory);
    CHECK(memory.calls == 2);
    // Taken by reference and left alone: it keeps the type it had.
    auto same = x;
    model.call(&RecurrentImpl::look, x);
    CHECK(x.is_same(same));
    // One object twice, and changed in place.
    model.call(&RecurrentImpl::count, memory, memory);
    CHECK(memory.calls == 3);
    auto cache = torch::zeros({2}), same_cache = cache;
    model.call([](RecurrentImpl&, auto& c) { return c.index_fill_(0, torch::tensor({1}), 2.0).sum(); }, cache);
    CHECK(cache.is_same(same_cache));
    CHECK(cache[1].item<double>() == 2);
    if (precision != "bf16-mixed") continue;
    // What leaves through an argument is watched like a result.
    model.call(&RecurrentImpl::keep, x, memory);
    CHECK_THROWS_AS(memory.hidden.sum().backward(), MisuseError);
  }
}

TEST_CASE("to_device takes modules, and refuses what it cannot see into", "[fabric]") {
  Fabric fabric(single());
  auto net = torch::nn::Linear(2, 2);
  CHECK(fabric.to_device(net).ptr() == net.ptr());
  struct Opaque {
    torch::Tensor x;
  };
  CHECK_THROWS_WITH(fabric.to_device(Opaque{torch::ones({1})}), Contains("FABRIC_TENSORS"));
}

TEST_CASE("backward takes what LibTorch's takes", "[fabric]") {
  for (std::string precision : {"32-true", "bf16-mixed"}) {
    INFO(precision);
    auto config = single();
    config.precision = precision;
    Fabric fabric(config);
    auto model = fabric.setup(Net());
    auto out = model(torch::ones({1, 4}));
    auto rows = torch::tensor({{1.0f, 2.0f}});
    fabric.backward(out, {.gradient = rows, .retain_graph = true});
    CHECK(torch::equal(model->linear->bias.grad(), rows[0]));
    fabric.backward(out, model, {.gradient = rows});
    CHECK(torch::equal(model->linear->bias.grad(), rows[0] * 2));
    auto x = torch::ones({1, 4}, torch::requires_grad());
    fabric.backward(model(x).sum(), {.inputs = {x}});
    CHECK(x.grad().defined());
    CHECK(torch::equal(model->linear->bias.grad(), rows[0] * 2));
  }
}

TEST_CASE("struct types are seen through under mixed precision", "[fabric]") {
  auto config = single();
  config.precision = "bf16-true";
  Fabric fabric(config);
  auto model = fabric.setup(TwoHeads());
  CHECK(model->linear->weight.scalar_type() == torch::kBFloat16);
  Pair out = model(Pair{torch::ones({1, 4}), torch::zeros({1, 4})}, 1.0);
  CHECK(out.a.scalar_type() == torch::kFloat);
}

TEST_CASE("guarded calls before launch say so", "[fabric]") {
  Fabric fabric(ddp());
  Net net;
  torch::optim::SGD sgd(net->parameters(), 0.1);
  auto before = Contains("before fabric.launch()");
  CHECK_THROWS_WITH(fabric.setup(net), before);
  CHECK_THROWS_WITH(fabric.setup_module(net), before);
  CHECK_THROWS_WITH(fabric.setup_optimizers(sgd), before);
  CHECK_THROWS_WITH(fabric.barrier(), before);
  CHECK_THROWS_WITH(fabric.broadcast(1), before);
  CHECK_THROWS_WITH(fabric.all_gather(Value(1)), before);
  CHECK_THROWS_WITH(fabric.all_reduce(Value(1)), before);
  CHECK_THROWS_WITH(fabric.init_module(), before);
  CHECK_THROWS_WITH(fabric.setup_dataloader(torch::data::datasets::TensorDataset(torch::ones({2, 2}))), before);
  CHECK_THROWS_WITH(fabric.load("x"), before);
  CHECK_THROWS_WITH(fabric.rank_zero_first([] {}), before);
  auto in_place = torch::ones({1});
  CHECK_THROWS_WITH(fabric.all_reduce_(in_place), before);
  CHECK_THROWS_WITH(fabric.save("x", {}), before);
  CHECK_FALSE(fabric.launched());
  auto guard = fabric.init_tensor();  // needs no launch
}

TEST_CASE("launch with a function returns its result", "[fabric]") {
  Fabric fabric(single());
  CHECK(fabric.launch([](Fabric& inside) { return inside.world_size() + 41; }) == 42);
  CHECK(fabric.launched());
  fabric.launch();
}

TEST_CASE("a strategy from outside: joint setup and backward rules", "[fabric]") {
  auto strategy = std::make_shared<Recorder>();
  Fabric fabric({.accelerator = "cpu"}, {.strategy = strategy});
  fabric.launch();
  Net net;
  torch::optim::SGD sgd(net->parameters(), 0.1);
  CHECK_THROWS_WITH(fabric.setup_optimizers(sgd), Contains("fabric.setup(module, optimizer)"));
  auto [model, optimizer] = fabric.setup(net, sgd);
  auto loss = model(torch::ones({2, 4})).sum();
  CHECK_THROWS_WITH(loss.backward(), Contains("fabric.backward(loss)"));
  CHECK_NOTHROW(fabric.backward(model(torch::ones({2, 4})).sum()));
  CHECK_THROWS_WITH(model(torch::ones({2, 4})).sum().backward(), Contains("fabric.backward(loss)"));
  CHECK(net->linear->weight.grad().defined());
}

TEST_CASE("which precisions demand fabric.backward", "[fabric]") {
  for (auto [precision, demands] : {std::pair{"32-true", false}, {"bf16-true", false}, {"bf16-mixed", true}}) {
    auto config = single();
    config.precision = precision;
    Fabric fabric(config);
    auto model = fabric.setup(Net());
    INFO(precision);
    auto loss = model(torch::ones({2, 4})).sum();
    if (demands)
      CHECK_THROWS_AS(loss.backward(), MisuseError);
    else
      CHECK_NOTHROW(loss.backward());
  }
}

TEST_CASE("clip_gradients takes exactly one limit", "[fabric]") {
  Fabric fabric(single());
  auto [model, optimizer] = fabric.setup(Net(), [](auto p) { return torch::optim::SGD(p, 0.1); });
  CHECK_THROWS_WITH(fabric.clip_gradients(model, optimizer, {}), Contains("clip_val or max_norm"));
  CHECK_THROWS_AS(fabric.clip_gradients(model, optimizer, {.clip_val = 1, .max_norm = 1}), MisuseError);
  fabric.backward(model(100 * torch::ones({2, 4})).sum());
  auto before = fabric.clip_gradients(model, optimizer, {.max_norm = 1.0});
  CHECK(before.item<double>() > 1);
  double total = 0;
  for (auto& p : model->parameters()) total += p.grad().pow(2).sum().item<double>();
  CHECK(std::sqrt(total) == Approx(1).epsilon(1e-4));
  fabric.backward(model(100 * torch::ones({2, 4})).sum());
  CHECK_FALSE(fabric.clip_gradients(model, optimizer, {.clip_val = 0.5}).defined());
  CHECK(model->linear->weight.grad().abs().max().item<double>() <= 0.5);
}

TEST_CASE("one process: collectives keep values, gather adds a dimension", "[fabric]") {
  Fabric fabric(single());
  CHECK(fabric.all_reduce(Value(3)).as_double() == 3);
  auto own = torch::ones({2}, torch::requires_grad());
  auto reduced = fabric.all_reduce(own);
  CHECK_FALSE(reduced.requires_grad());
  reduced.add_(1);  // as with several ranks, the input stays as it is
  CHECK(own[0].item<double>() == 1);
  CHECK(fabric.all_reduce(Value(3), fabric::ReduceOp::sum).as_int() == 3);
  CHECK(fabric.broadcast(Value("text")).as_string() == "text");
  CHECK(fabric.all_gather(torch::ones({2})).sizes() == torch::IntArrayRef({1, 2}));
  Value nested = Value::Map{{"list", Value::List{1, torch::ones({3}), "s"}}, {"x", 2.5}};
  auto gathered = fabric.all_gather(nested);
  CHECK(gathered.at("list").as_list()[1].as<at::Tensor>().sizes() == torch::IntArrayRef({1, 3}));
  int order = 0;
  fabric.rank_zero_first([&] { ++order; });
  CHECK(order == 1);
  fabric.barrier();
}

TEST_CASE("log takes scalars only", "[fabric]") {
  struct Memory : fabric::Logger {
    std::string name() const override { return "memory"; }
    std::string version() const override { return "0"; }
    std::string root_dir() const override { return ""; }
    std::string log_dir() const override { return ""; }
    void log_metrics(const fabric::Metrics& metrics, std::optional<std::int64_t>) override { last = metrics; }
    void log_hyperparams(const fabric::Tree&) override {}
    fabric::Metrics last;
  };
  auto memory = std::make_shared<Memory>();
  Fabric fabric(single(), {.loggers = {memory}});
  fabric.log("a", 1.5);
  CHECK(memory->last.at("a") == 1.5);
  fabric.log("b", torch::ones({1}));
  CHECK(memory->last.at("b") == 1);
  fabric.log_dict({{"c", torch::tensor(2.0)}, {"d", 4}});
  CHECK(memory->last.at("c") == 2);
  CHECK_THROWS_WITH(fabric.log("e", torch::ones({2})), Contains("one element"));
  Fabric without(single());
  CHECK_THROWS_WITH(without.logger(), Contains("no logger"));
}

TEST_CASE("callbacks run in order; unknown events are skipped", "[fabric]") {
  struct Watch : fabric::Callback {
    void on_after_setup(Fabric&, torch::nn::Module&) override { ++setups; }
    void on_after_optimizer_step(fabric::Strategy&, torch::optim::Optimizer&) override { ++steps; }
    int setups = 0, steps = 0;
  };
  auto first = std::make_shared<Watch>(), second = std::make_shared<Watch>();
  std::string order;
  first->on("epoch_end",
            [&](Fabric&, const Value::Map& arguments) { order += "1:" + arguments.at("name").as_string(); });
  second->on("epoch_end", [&](Fabric&, const Value::Map&) { order += " 2"; });
  Fabric fabric(single(), {.callbacks = {first, second}});
  fabric.call("epoch_end", {{"name", "x"}});
  fabric.call("nobody_listens");
  CHECK(order == "1:x 2");
  auto [model, optimizer] = fabric.setup(Net(), [](auto p) { return torch::optim::SGD(p, 0.1); });
  fabric.backward(model(torch::ones({1, 4})).sum());
  optimizer.step();
  CHECK(first->setups == 1);
  CHECK(second->steps == 1);
}

TEST_CASE("closures reach the optimizer and its loss comes back", "[fabric]") {
  Fabric fabric(single());
  auto [model, optimizer] = fabric.setup(Net(), [](auto p) { return torch::optim::LBFGS(p); });
  auto x = torch::randn({8, 4}), y = torch::randn({8, 2});
  auto closure = [&, &model = model, &optimizer = optimizer] {
    optimizer.zero_grad();
    auto loss = torch::mse_loss(model(x), y);
    fabric.backward(loss);
    return loss;
  };
  auto first = optimizer.step(closure).item<double>();
  auto second = optimizer.step(closure).item<double>();
  CHECK(second < first);
}

TEST_CASE("save and load restore in place and return the remainder", "[fabric]") {
  TempDir dir;
  Fabric fabric(single());
  auto [model, optimizer] = fabric.setup(Net(), [](auto p) { return torch::optim::Adam(p, 0.1); });
  fabric.backward(model(torch::ones({2, 4})).sum());
  optimizer.step();
  auto path = dir.path / "sub" / "a.safetensors";
  fabric.save(path, {{"model", model}, {"optimizer", optimizer}, {"epoch", 3}, {"extra", "kept"}});
  auto weight = model->linear->weight.clone();
  {
    torch::NoGradGuard no_grad;
    model->linear->weight.zero_();
  }
  fabric::State state = {{"model", model}, {"optimizer", optimizer}, {"epoch", 0}};
  auto rest = fabric.load(path, state);
  CHECK(torch::equal(model->linear->weight, weight));
  CHECK(state["epoch"].value()->as_int() == 3);
  CHECK(rest.at("extra").as_string() == "kept");
  CHECK(fabric.load(path).at("epoch").as_int() == 3);
  fabric::State missing = {{"absent", 1}};
  CHECK_THROWS_AS(fabric.load(path, missing), fabric::CheckpointKeyError);
  CHECK_NOTHROW(fabric.load(path, missing, false));
  CHECK(missing["absent"].value()->as_int() == 1);
  CHECK_THROWS_AS(fabric.save(path, {{"model", model}}, {{"absent", [](auto&, auto&) { return true; }}}), MisuseError);
}

TEST_CASE("bad settings are refused before anything starts", "[fabric]") {
  CHECK_THROWS_WITH(Fabric({.strategy = "dpp"}), Contains("ddp"));
  CHECK_THROWS_AS(Fabric({.accelerator = "cpuu"}), fabric::ConfigError);
  CHECK_THROWS_AS(Fabric({.accelerator = "cpu", .precision = "33"}), fabric::ConfigError);
  CHECK_THROWS_AS(Fabric({.accelerator = "cpu", .devices = 0}), fabric::ConfigError);
  CHECK_THROWS_AS(Fabric({.accelerator = "cpu", .num_nodes = 0}), fabric::ConfigError);
  CHECK_THROWS_AS(Fabric({.accelerator = "cpu", .strategy = "ddp"}, {.strategy = std::make_shared<Recorder>()}),
                  fabric::ConfigError);
}

TEST_CASE("variables override settings; under the launcher a contradiction is an error", "[fabric]") {
  auto env = std::make_shared<fabric::MapEnv>(std::map<std::string, std::string>{{"FABRIC_PRECISION", "64-true"}});
  Fabric fabric(single(), {.env = env});
  CHECK(fabric.precision()->name() == "64-true");
  CHECK_THAT(fabric.describe(), Contains("precision = 64-true, from the environment"));
  auto config = single();
  config.precision = "bf16-true";
  env->set("FABRIC_CLI_USED", "1");
  CHECK_THROWS_WITH(Fabric(config, {.env = env}), Contains("Remove one of the two"));
}

namespace {

struct Diary : fabric::Logger {
  explicit Diary(std::vector<std::string>& ends, bool broken = false) : ends(ends), broken(broken) {}
  std::string name() const override { return "diary"; }
  std::string version() const override { return "0"; }
  std::string root_dir() const override { return ""; }
  std::string log_dir() const override { return ""; }
  void log_metrics(const fabric::Metrics&, std::optional<std::int64_t>) override {}
  void log_hyperparams(const fabric::Tree&) override {}
  void finalize(const std::string& status) override {
    ends.push_back(status);
    if (broken) throw std::runtime_error("the disk is full");
  }
  std::vector<std::string>& ends;
  bool broken;
};

}  // namespace

TEST_CASE("shutdown puts everything away, whatever fails, and tells how the run ended", "[fabric]") {
  std::vector<std::string> ends;
  {
    Fabric fabric(single(), {.loggers = {std::make_shared<Diary>(ends, true), std::make_shared<Diary>(ends)}});
    CHECK_THROWS_WITH(fabric.shutdown(), Contains("the disk is full"));
    CHECK_NOTHROW(fabric.shutdown());
  }
  CHECK(ends == std::vector<std::string>{"success", "success"});
  ends.clear();
  try {
    Fabric fabric(single(), {.loggers = {std::make_shared<Diary>(ends)}});
    throw std::runtime_error("in the loop");
  } catch (const std::runtime_error&) {
  }
  CHECK(ends == std::vector<std::string>{"failed"});
}

TEST_CASE("no use after shutdown", "[fabric]") {
  Fabric fabric(single());
  fabric.shutdown();
  fabric.shutdown();
  CHECK_THROWS_WITH(fabric.barrier(), Contains("after shutdown"));
}

TEST_CASE("a refused optimizer leaves the module as it was", "[fabric]") {
  auto config = single();
  config.precision = "64-true";
  Fabric fabric(config);
  Net net, other;
  auto [wrapped, optimizer] = fabric.setup(other, torch::optim::SGD(other->parameters(), 0.1));
  CHECK_THROWS_AS(fabric.setup(net, optimizer), MisuseError);
  CHECK_THROWS_AS(fabric.setup(net, std::shared_ptr<torch::optim::Optimizer>()), MisuseError);
  CHECK(net->linear->weight.scalar_type() == torch::kFloat);
  CHECK(fabric.models_setup() == 1);
}

TEST_CASE("a module may stay where it is, on several devices", "[fabric]") {
  struct Mixed : torch::nn::Module {
    Mixed() {
      register_parameter("here", torch::ones({2}));
      register_parameter("there", torch::ones({2}, torch::kMeta));
    }
  };
  Fabric fabric(single());
  auto kept = fabric.setup_module(std::make_shared<Mixed>(), {.move_to_device = false});
  CHECK(kept->named_parameters()["there"].is_meta());
  CHECK(kept.device().is_cpu());
  auto empty = fabric.setup_module(std::make_shared<torch::nn::Module>(), {.move_to_device = false});
  CHECK(empty.device().is_cpu());
}

TEST_CASE("tensor_options and init_tensor have the precision's type", "[fabric]") {
  auto config = single();
  config.precision = "64-true";
  Fabric fabric(config);
  auto zeros = torch::zeros({2}, fabric.tensor_options());
  CHECK(zeros.scalar_type() == torch::kDouble);
  CHECK(zeros.device() == fabric.device());
  {
    auto scope = fabric.init_tensor();
    CHECK(torch::zeros({2}).scalar_type() == torch::kDouble);
    CHECK(torch::zeros({2}, torch::kInt).scalar_type() == torch::kInt);
  }
  CHECK(torch::zeros({2}).scalar_type() == torch::kFloat);
  {
    auto scope = fabric.init_module(/*empty_init=*/true);
    CHECK(Net()->linear->weight.scalar_type() == torch::kDouble);
  }
}

TEST_CASE("a load that does not fit changes nothing, whatever comes first", "[fabric]") {
  TempDir dir;
  Fabric fabric(single());
  auto [model, optimizer] = fabric.setup(Net(), [](auto p) { return torch::optim::Adam(p, 0.1); });
  fabric.backward(model(torch::ones({2, 4})).sum());
  optimizer.step();
  auto path = dir.path / "adam.safetensors";
  fabric.save(path, {{"model", model}, {"optimizer", optimizer}});

  auto [other, sgd] = fabric.setup(Net(), [](auto p) {
    p.pop_back();
    return torch::optim::Adam(p, 0.1);
  });
  auto before = other->linear->weight.clone();
  fabric::State state = {{"model", other}, {"optimizer", sgd}};
  CHECK_THROWS_AS(fabric.load(path, state), fabric::CheckpointKeyError);
  CHECK(torch::equal(other->linear->weight, before));
}

TEST_CASE("load_raw takes a file of one object", "[fabric]") {
  TempDir dir;
  Fabric fabric(single());
  auto [model, optimizer] = fabric.setup(Net(), [](auto p) { return torch::optim::SGD(p, 0.5); });
  auto path = dir.path / "raw.safetensors";
  fabric.strategy()->checkpoint_io()->save(model.state_dict(), path);
  auto [other, adam] = fabric.setup(Net(), [](auto p) { return torch::optim::SGD(p, 0.1); });
  fabric.load_raw(path, other);
  CHECK(torch::equal(other->linear->weight, model->linear->weight));
  fabric.strategy()->checkpoint_io()->save(optimizer.state_dict(), path);
  fabric.load_raw(path, adam);
  CHECK(adam.param_groups()[0].options().get_lr() == 0.5);
  CHECK_THROWS_WITH(fabric.load_raw(path, 3), Contains("a module or an optimizer"));
}

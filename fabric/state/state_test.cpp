#include <fabric/state/state.h>

#include <torch/torch.h>

#include <fabric/base/error.h>

#include "tests/support/captured_log.h"
#include "tests/support/catch.h"

using namespace fabric;
using Catch::Matchers::Contains;

namespace {

struct Net : torch::nn::Module {
  Net() {
    fc = register_module("fc", torch::nn::Linear(3, 2));
    norm = register_module("norm", torch::nn::BatchNorm1d(2));
    scale = register_parameter("scale", torch::ones(1));
  }
  torch::nn::Linear fc{nullptr};
  torch::nn::BatchNorm1d norm{nullptr};
  torch::Tensor scale;
};

struct Tied : torch::nn::Module {
  Tied() {
    a = register_module("a", torch::nn::Linear(torch::nn::LinearOptions(2, 2).bias(false)));
    register_module("b", a);
  }
  torch::nn::Linear a{nullptr};
};

struct Counter : Stateful {
  int count = 0;
  Value state_dict() const override { return Value::Map{{"count", count}}; }
  void load_state_dict(const Value& state) override { count = static_cast<int>(state.at("count").as_int()); }
};

std::vector<std::string> keys(const Value& value) {
  std::vector<std::string> out;
  for (const auto& [key, item] : value.as_map()) out.push_back(key);
  return out;
}

Value cloned(Value value) {
  for_each_leaf_tensor(value, [](torch::Tensor& tensor, const std::string&) { tensor = tensor.clone(); });
  return value;
}

}  // namespace

TEST_CASE("a module's state has parameters and buffers by dotted name", "[state]") {
  Net net;
  Value state = module_state_dict(net);
  CHECK(keys(state) == std::vector<std::string>{"scale", "fc.weight", "fc.bias", "norm.weight", "norm.bias",
                                                "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"});
  CHECK_FALSE(state.at("fc.weight").as<torch::Tensor>().requires_grad());
  CHECK(state.at("fc.weight").as<torch::Tensor>().data_ptr() == net.fc->weight.data_ptr());
}

TEST_CASE("loading a module copies into its own tensors", "[state]") {
  Net from, to;
  auto* before = to.fc->weight.unsafeGetTensorImpl();
  Value state = module_state_dict(from);
  for_each_leaf_tensor(state, [](torch::Tensor& tensor, const std::string&) {
    if (tensor.is_floating_point()) tensor = tensor.to(torch::kDouble);
  });
  load_module_state_dict(to, state);
  CHECK(torch::equal(to.fc->weight, from.fc->weight));
  CHECK(to.fc->weight.unsafeGetTensorImpl() == before);
  CHECK(to.fc->weight.scalar_type() == torch::kFloat);
  CHECK(to.fc->weight.requires_grad());
  CHECK(to.fc->weight.data_ptr() != from.fc->weight.data_ptr());

  Value nested = Value::Map{{"fc", Value::Map{{"weight", torch::zeros({2, 3})}, {"bias", torch::zeros(2)}}}};
  load_module_state_dict(to, nested, false);
  CHECK(to.fc->weight.abs().sum().item<float>() == 0);
}

TEST_CASE("a strict load names all that does not fit and changes nothing", "[state]") {
  Net net;
  Value good = module_state_dict(net), bad = cloned(good);
  bad.as_map().erase("fc.bias");
  bad["extra"] = torch::ones(1);
  bad["note"] = "text";
  bad["norm.weight"] = torch::ones(7);
  bad["norm.num_batches_tracked"] = torch::tensor(1.5);
  bad["scale"] = torch::zeros(1);
  CHECK_THROWS_AS(load_module_state_dict(net, bad), CheckpointKeyError);
  CHECK_THROWS_WITH(check_module_state_dict(net, bad),
                    Contains("missing 'fc.bias'") && Contains("unexpected 'extra'") && Contains("unexpected 'note'") &&
                        Contains("'norm.weight' is [7] Float in the checkpoint, [2] Float in the module") &&
                        Contains("'norm.num_batches_tracked'"));
  CHECK(net.scale.item<float>() == 1);
  load_module_state_dict(net, bad, false);
  CHECK(net.scale.item<float>() == 0);
  CHECK_THROWS_AS(load_module_state_dict(net, Value(3)), CheckpointKeyError);
}

TEST_CASE("a partial load that restores nothing says so, with a name of each side", "[state]") {
  Net net;
  Value state = Value::Map{{"model", cloned(module_state_dict(net))}};
  CHECK_THAT(testing::log_of([&] { load_module_state_dict(net, state, false); }),
             Contains("restored nothing") && Contains("missing 'scale'") && Contains("unexpected 'model.scale'"));
  state = Value::Map{{"scale", torch::zeros(1)}, {"else", torch::zeros(1)}};
  CHECK(testing::log_of([&] { load_module_state_dict(net, state, false); }).empty());
  CHECK(testing::log_of([&] { load_module_state_dict(net, Value(Value::Map{}), false); }).empty());
}

TEST_CASE("tied weights load from a checkpoint that has one of their names", "[state]") {
  Tied tied;
  Value state = cloned(module_state_dict(tied));
  CHECK(keys(state).size() == 2);
  state.as_map().erase("b.weight");
  CHECK_NOTHROW(load_module_state_dict(tied, state));
}

TEST_CASE("a state is collected and restored in place, with the rest returned", "[state]") {
  Net net;
  torch::optim::SGD optimizer(net.parameters(), torch::optim::SGDOptions(0.5));
  Counter counter;
  counter.count = 3;
  State state{{"model", net}, {"optimizer", optimizer}, {"counter", counter}, {"epoch", 7}};
  Value saved = cloned(collect_state(state, StateAccess::plain()).values);
  CHECK(keys(saved) == std::vector<std::string>{"model", "optimizer", "counter", "epoch"});

  Net other;
  torch::optim::SGD other_optimizer(other.parameters(), torch::optim::SGDOptions(0.1));
  Counter other_counter;
  State target{{"epoch", 0}, {"model", other}, {"optimizer", other_optimizer}, {"counter", other_counter}};
  saved["left over"] = "yes";
  Value rest = restore_state(target, saved, StateAccess::plain());
  CHECK(keys(rest) == std::vector<std::string>{"left over"});
  CHECK(target.at("epoch").value()->as_int() == 7);
  CHECK(other_counter.count == 3);
  CHECK(torch::equal(other.fc->weight, net.fc->weight));
  CHECK(static_cast<torch::optim::SGDOptions&>(other_optimizer.param_groups()[0].options()).lr() == 0.5);
}

TEST_CASE("missing keys: an error that changes nothing, or values kept", "[state]") {
  Value saved = Value::Map{{"a", 1}};
  State target{{"a", 10}, {"b", 20}, {"c", 30}};
  CHECK_THROWS_WITH(restore_state(target, saved, StateAccess::plain()), Contains("'b', 'c'") && Contains("holds 'a'"));
  CHECK(target.at("a").value()->as_int() == 10);
  restore_state(target, saved, StateAccess::plain(), false);
  CHECK(target.at("a").value()->as_int() == 1);
  CHECK(target.at("b").value()->as_int() == 20);
  CHECK_THROWS_AS(restore_state(target, Value(1), StateAccess::plain()), CheckpointKeyError);
}

TEST_CASE("an optimizer that does not fit leaves the module before it alone", "[state]") {
  Net net, other;
  torch::optim::SGD optimizer(net.parameters(), torch::optim::SGDOptions(0.5));
  State state{{"model", net}, {"optimizer", optimizer}};
  Value saved = cloned(collect_state(state, StateAccess::plain()).values);
  torch::optim::SGD smaller({other.scale}, torch::optim::SGDOptions(0.5));
  State target{{"model", other}, {"optimizer", smaller}};
  auto before = other.fc->weight.clone();
  CHECK_THROWS_WITH(restore_state(target, saved, StateAccess::plain()), Contains("'optimizer'"));
  CHECK(torch::equal(before, other.fc->weight));
}

TEST_CASE("filters choose entries of maps", "[state]") {
  Net net;
  State state{{"model", net}, {"epoch", 1}, {"extra", Value::Map{{"x", 1}}}};
  auto weights = [](const std::string& key, const Value&) { return key.ends_with("weight"); };
  auto nothing = [](const std::string&, const Value&) { return false; };
  auto access = StateAccess::plain();
  Value out = collect_state(state, access, {{"model", weights}, {"extra", nothing}}).values;
  CHECK(keys(out) == std::vector<std::string>{"model", "epoch"});
  CHECK(keys(out.at("model")) == std::vector<std::string>{"fc.weight", "norm.weight"});
  CHECK_THROWS_WITH(collect_state(state, access, {{"modle", weights}}), Contains("'modle'") && Contains("'model'"));
  CHECK_THROWS_AS(collect_state(state, access, {{"epoch", weights}}), MisuseError);
  CHECK_THROWS_AS(collect_state(state, access, {{"model", nullptr}}), MisuseError);
}

TEST_CASE("a variable's optimizer is looked up when it is used", "[state]") {
  Net net;
  std::shared_ptr<torch::optim::Optimizer> variable = std::make_shared<torch::optim::SGD>(net.parameters(), 0.5);
  State state{{"optimizer", variable}};
  variable = std::make_shared<torch::optim::SGD>(net.parameters(), 0.25);
  Value saved = collect_state(state, StateAccess::plain()).values;
  CHECK(saved.at("optimizer").at("param_groups").as_list()[0].at("lr").as_double() == 0.25);
}

TEST_CASE("what brings others into shape is restored first, wherever it stands", "[state]") {
  struct Groups : Stateful {
    explicit Groups(torch::optim::Optimizer& optimizer) : optimizer(optimizer) {}
    Value state_dict() const override { return Value(static_cast<int>(optimizer.param_groups().size())); }
    void load_state_dict(const Value& state) override {
      while (static_cast<int>(optimizer.param_groups().size()) < state.as_int())
        optimizer.add_param_group(torch::optim::OptimizerParamGroup({extra}));
    }
    bool restores_first() const override { return true; }
    torch::optim::Optimizer& optimizer;
    at::Tensor extra = torch::ones(2, torch::requires_grad());
  };
  Net net;
  torch::optim::SGD grown(net.parameters(), torch::optim::SGDOptions(0.5)), fresh(net.parameters(), 0.1);
  Groups grown_groups(grown), fresh_groups(fresh);
  grown.add_param_group(torch::optim::OptimizerParamGroup({grown_groups.extra}));
  State source{{"optimizer", grown}, {"groups", grown_groups}}, target{{"optimizer", fresh}, {"groups", fresh_groups}};
  restore_state(target, cloned(collect_state(source, StateAccess::plain()).values), StateAccess::plain());
  REQUIRE(fresh.param_groups().size() == 2);
  CHECK(fresh.param_groups()[0].options().get_lr() == 0.5);
}

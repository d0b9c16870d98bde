#include <torch/torch.h>

#include <fabric/base/error.h>
#include <fabric/state/state.h>

#include "tests/support/catch.h"

using namespace fabric;
using Catch::Matchers::Contains;
namespace optim = torch::optim;

namespace {

struct Problem {
  explicit Problem(torch::ScalarType type = torch::kFloat)
      : a(torch::linspace(-1, 1, 6, type).view({2, 3}).requires_grad_()),
        b(torch::linspace(0, 1, 4, type).requires_grad_()) {}
  torch::Tensor loss() { return (a * a).sum() + (b - 0.5).pow(4).sum(); }
  torch::Tensor a, b;
  std::vector<optim::OptimizerParamGroup> groups() {
    return {optim::OptimizerParamGroup({a}), optim::OptimizerParamGroup({b})};
  }
};

void steps(optim::Optimizer& optimizer, Problem& problem, int count) {
  for (int i = 0; i < count; ++i)
    optimizer.step([&] {
      optimizer.zero_grad();
      auto loss = problem.loss();
      loss.backward();
      return loss;
    });
}

void copy_values(Problem& to, const Problem& from) {
  torch::NoGradGuard guard;
  to.a.copy_(from.a);
  to.b.copy_(from.b);
}

Value deep_copy(Value value) {
  for_each_leaf_tensor(value, [](torch::Tensor& tensor, const std::string&) {
    if (tensor.defined()) tensor = tensor.clone();
  });
  return value;
}

/// Trains, saves, trains on; a fresh optimizer with other settings that loads must then do the very same steps.
template <class Make>
void check_resumes(Make make) {
  Problem first, second;
  auto trained = make(first, 0.01);
  steps(*trained, first, 3);
  Value saved = deep_copy(optimizer_state_dict(*trained));
  copy_values(second, first);
  auto fresh = make(second, 0.5);
  load_optimizer_state_dict(*fresh, saved);
  steps(*trained, first, 3);
  steps(*fresh, second, 3);
  CHECK(torch::equal(first.a, second.a));
  CHECK(torch::equal(first.b, second.b));
}

/// An optimizer class of a user's own, with its own options and state.
struct OwnOptions : optim::OptimizerCloneableOptions<OwnOptions> {
  explicit OwnOptions(double rate) : rate(rate) {}
  double rate;
};
class OwnOptimizer : public optim::Optimizer {
 public:
  OwnOptimizer(std::vector<torch::Tensor> parameters, double rate)
      : Optimizer(std::move(parameters), std::make_unique<OwnOptions>(rate)) {}
  torch::Tensor step(LossClosure) override {
    ++count;
    return {};
  }
  void save(torch::serialize::OutputArchive& archive) const override { archive.write("count", torch::tensor(count)); }
  void load(torch::serialize::InputArchive& archive) override {
    torch::Tensor stored;
    archive.read("count", stored);
    count = stored.item<std::int64_t>();
  }
  std::int64_t count = 0;
};
class StatefulOptimizer : public OwnOptimizer, public Stateful {
 public:
  using OwnOptimizer::OwnOptimizer;
  Value state_dict() const override { return Value::Map{{"mine", count}}; }
  void load_state_dict(const Value& state) override { count = state.at("mine").as_int(); }
};

}  // namespace

TEST_CASE("every optimizer of LibTorch resumes where it was", "[state][optimizer]") {
  SECTION("SGD") {
    check_resumes(
        [](Problem& p, double lr) { return std::make_unique<optim::SGD>(p.groups(), optim::SGDOptions(lr)); });
  }
  SECTION("SGD with momentum") {
    check_resumes([](Problem& p, double lr) {
      return std::make_unique<optim::SGD>(p.groups(),
                                          optim::SGDOptions(lr).momentum(0.9).nesterov(true).weight_decay(0.1));
    });
  }
  SECTION("Adam") {
    check_resumes(
        [](Problem& p, double lr) { return std::make_unique<optim::Adam>(p.groups(), optim::AdamOptions(lr)); });
  }
  SECTION("AdamW with amsgrad") {
    check_resumes([](Problem& p, double lr) {
      return std::make_unique<optim::AdamW>(p.groups(), optim::AdamWOptions(lr).amsgrad(true).betas({0.8, 0.95}));
    });
  }
  SECTION("Adagrad") {
    check_resumes([](Problem& p, double lr) {
      return std::make_unique<optim::Adagrad>(p.groups(), optim::AdagradOptions(lr).lr_decay(0.1));
    });
  }
  SECTION("RMSprop") {
    check_resumes([](Problem& p, double lr) {
      return std::make_unique<optim::RMSprop>(p.groups(), optim::RMSpropOptions(lr).momentum(0.5).centered(true));
    });
  }
  SECTION("LBFGS") {
    check_resumes([](Problem& p, double lr) {
      return std::make_unique<optim::LBFGS>(std::vector{p.a, p.b},
                                            optim::LBFGSOptions(lr).max_iter(3).line_search_fn("strong_wolfe"));
    });
  }
}

TEST_CASE("the state has PyTorch's shape", "[state][optimizer]") {
  Problem problem;
  optim::AdamW optimizer(problem.groups(), optim::AdamWOptions(0.25));
  steps(optimizer, problem, 2);
  Value state = optimizer_state_dict(optimizer);
  CHECK(state.at("state").at("1").at("step").as_int() == 2);
  CHECK(state.at("state").at("0").at("exp_avg").as<torch::Tensor>().sizes() == problem.a.sizes());
  const auto& groups = state.at("param_groups").as_list();
  CHECK(groups[0].at("lr").as_double() == 0.25);
  CHECK(groups[0].at("betas").as_list()[1].as_double() == 0.999);
  CHECK(groups[1].at("params").as_list()[0].as_int() == 1);
}

TEST_CASE("what Python's AdamW wrote loads", "[state][optimizer]") {
  Problem problem;
  optim::AdamW optimizer({problem.a, problem.b}, optim::AdamWOptions(0.1));
  auto python = [](torch::Tensor like, float value) {
    return Value::Map{{"step", torch::tensor(5.0f)},
                      {"exp_avg", torch::full_like(like, value).detach()},
                      {"exp_avg_sq", torch::full_like(like, value * value).to(torch::kDouble).detach()}};
  };
  Value state = Value::Map{{"state", Value::Map{{"0", python(problem.a, 2)}, {"1", python(problem.b, 3)}}},
                           {"param_groups", Value::List{Value::Map{{"lr", torch::tensor(0.7)},
                                                                   {"betas", Value::List{0.5, 0.6}},
                                                                   {"eps", 1e-5},
                                                                   {"weight_decay", 0},
                                                                   {"amsgrad", false},
                                                                   {"maximize", false},
                                                                   {"foreach", Value()},
                                                                   {"capturable", false},
                                                                   {"differentiable", false},
                                                                   {"fused", Value()},
                                                                   {"decoupled_weight_decay", true},
                                                                   {"params", Value::List{0, 1}}}}}};
  load_optimizer_state_dict(optimizer, state);
  auto& options = static_cast<optim::AdamWOptions&>(optimizer.param_groups()[0].options());
  CHECK(options.lr() == Approx(0.7));
  CHECK(options.weight_decay() == 0);
  CHECK(options.betas() == std::tuple(0.5, 0.6));
  auto& mine = static_cast<optim::AdamWParamState&>(*optimizer.state().at(problem.b.unsafeGetTensorImpl()));
  CHECK(mine.step() == 5);
  CHECK(mine.exp_avg()[0].item<float>() == 3);
  CHECK(mine.exp_avg_sq().scalar_type() == torch::kFloat);
  auto& theirs = state["state"]["1"]["exp_avg"].as<torch::Tensor>();
  CHECK(mine.exp_avg().data_ptr() != theirs.data_ptr());
  steps(optimizer, problem, 1);
}

TEST_CASE("state that does not fit is refused before anything changes", "[state][optimizer]") {
  Problem problem, other;
  optim::AdamW optimizer(problem.groups(), optim::AdamWOptions(0.1));
  steps(optimizer, problem, 2);
  Value good = deep_copy(optimizer_state_dict(optimizer));
  auto unchanged = [&] {
    auto& options = static_cast<optim::AdamWOptions&>(optimizer.param_groups()[0].options());
    auto& state = static_cast<optim::AdamWParamState&>(*optimizer.state().at(problem.a.unsafeGetTensorImpl()));
    return options.lr() == 0.1 && state.step() == 2 &&
           torch::equal(state.exp_avg(), good.at("state").at("0").at("exp_avg").as<torch::Tensor>());
  };
  auto refuses = [&](const std::string& text, auto change) {
    Value bad = deep_copy(good);
    bad["param_groups"].as_list()[0]["lr"] = 99.0;
    bad["state"]["0"]["step"] = 77;
    change(bad);
    INFO(text);
    CHECK_THROWS_AS(check_optimizer_state_dict(optimizer, bad), CheckpointKeyError);
    CHECK_THROWS_WITH(load_optimizer_state_dict(optimizer, bad), Contains(text));
    CHECK(unchanged());
  };
  refuses("1 parameter groups", [](Value& v) { v["param_groups"].as_list().pop_back(); });
  refuses("group 1 has 2 parameters", [](Value& v) { v["param_groups"].as_list()[1]["params"] = Value::List{1, 2}; });
  refuses("appears twice", [](Value& v) { v["param_groups"].as_list()[1]["params"] = Value::List{0}; });
  refuses("another shape", [](Value& v) { v["state"]["1"]["exp_avg_sq"] = torch::zeros({7}); });
  refuses("no 'exp_avg'", [](Value& v) { v["state"]["1"].as_map().erase("exp_avg"); });
  refuses("another kind of optimizer", [](Value& v) { v["state"]["1"]["momentum_buffer"] = torch::zeros({4}); });
  refuses("none of its groups", [](Value& v) { v["state"]["9"] = Value::Map{}; });
  refuses("'lr' should be a number", [](Value& v) { v["param_groups"].as_list()[1]["lr"] = "fast"; });
  refuses("'betas' should be two numbers", [](Value& v) { v["param_groups"].as_list()[1]["betas"] = 1; });
  refuses("maximize", [](Value& v) { v["param_groups"].as_list()[1]["maximize"] = true; });
  refuses("Adam wrote it", [](Value& v) { v["param_groups"].as_list()[1]["decoupled_weight_decay"] = false; });
  refuses("no 'state'", [](Value& v) { v.as_map().erase("state"); });
  refuses("should be a map", [](Value& v) { v = 3; });
  optim::SGD sgd(other.groups(), optim::SGDOptions(0.1));
  CHECK_THROWS_AS(load_optimizer_state_dict(sgd, good), CheckpointKeyError);
  optim::Adagrad adagrad(other.groups());
  Value empty = Value::Map{{"state", Value::Map{}}, {"param_groups", optimizer_state_dict(adagrad).at("param_groups")}};
  CHECK_THROWS_AS(load_optimizer_state_dict(adagrad, empty), CheckpointKeyError);
}

TEST_CASE("state without entries clears what was there", "[state][optimizer]") {
  Problem problem;
  optim::Adam optimizer(problem.groups(), optim::AdamOptions(0.1));
  Value fresh = optimizer_state_dict(optimizer);
  steps(optimizer, problem, 1);
  load_optimizer_state_dict(optimizer, fresh);
  CHECK(optimizer.state().empty());
}

TEST_CASE("optimizers of the user's own are saved by their own means", "[state][optimizer]") {
  Problem problem;
  OwnOptimizer own({problem.a}, 1), other({problem.a}, 1);
  for (int i = 0; i < 4; ++i) own.step(nullptr);
  Value saved = deep_copy(optimizer_state_dict(own));
  CHECK(saved.at("archive").is<torch::Tensor>());
  load_optimizer_state_dict(other, saved);
  CHECK(other.count == 4);
  Value damaged = deep_copy(saved);
  damaged["archive"].as<torch::Tensor>().fill_(7);
  CHECK_THROWS_AS(load_optimizer_state_dict(other, damaged), CheckpointKeyError);
  OwnOptimizer bigger({problem.a, problem.b}, 1);
  CHECK_THROWS_AS(load_optimizer_state_dict(bigger, saved), CheckpointKeyError);

  StatefulOptimizer stateful({problem.a}, 1), second({problem.a}, 1);
  stateful.step(nullptr);
  load_optimizer_state_dict(second, optimizer_state_dict(stateful));
  CHECK(second.count == 1);
}

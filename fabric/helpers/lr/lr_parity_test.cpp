// The numbers that tests/parity/record_lr_schedulers.py recorded, step by step, in one go and with a save and a load on
// the way.

#include <torch/torch.h>

#include <cmath>
#include <fstream>
#include <numbers>
#include <sstream>

#include <fabric/base/tree_io.h>
#include <fabric/helpers/lr/lr_scheduler_registry.h>
#include <fabric/helpers/lr/lr_schedulers.h>
#include <fabric/helpers/optimizer_registry.h>
#include <fabric/plugins/checkpoint_io/checkpoint_io.h>

#include "tests/support/catch.h"

using fabric::LRFunction;
using fabric::LRScheduler;
using fabric::Tree;
using fabric::Value;

namespace {

constexpr double kPi = std::numbers::pi;

LRFunction function_named(const std::string& name) {
  if (name == "power") return [](std::int64_t epoch) { return std::pow(0.95, static_cast<double>(epoch)); };
  if (name == "harmonic") return [](std::int64_t epoch) { return 1 / (1 + static_cast<double>(epoch)); };
  if (name == "wave") return [](std::int64_t epoch) { return 1.0 + 0.1 * std::sin(static_cast<double>(epoch)); };
  throw std::invalid_argument(name);
}

Tree without(const Tree& map, const std::string& key) {
  Tree::Map rest = map.as_map();
  rest.erase(key);
  return rest;
}

std::shared_ptr<LRScheduler> make_scheduler(torch::optim::Optimizer& optimizer, const Tree& spec);

template <class Scheduler>
std::shared_ptr<LRScheduler> make_with_functions(torch::optim::Optimizer& optimizer, const Tree& args) {
  auto last_epoch = args.find("last_epoch") ? args.at("last_epoch").as_int() : -1;
  const Tree& given = args.at("lr_lambda");
  if (given.is_string()) return std::make_shared<Scheduler>(optimizer, function_named(given.as_string()), last_epoch);
  std::vector<LRFunction> functions;
  for (const Tree& name : given.as_list()) functions.push_back(function_named(name.as_string()));
  return std::make_shared<Scheduler>(optimizer, functions, last_epoch);
}

std::shared_ptr<LRScheduler> make_sequence(torch::optim::Optimizer& optimizer, const Tree& args) {
  fabric::CompositeLR::Schedulers inner;
  for (const Tree& spec : args.at("schedulers").as_list()) inner.push_back(make_scheduler(optimizer, spec));
  std::vector<std::int64_t> milestones;
  for (const Tree& each : args.at("milestones").as_list()) milestones.push_back(each.as_int());
  return std::make_shared<fabric::SequentialLR>(optimizer, inner, milestones);
}

std::shared_ptr<LRScheduler> make_scheduler(torch::optim::Optimizer& optimizer, const Tree& spec) {
  const auto& name = spec.at("class_path").as_string();
  const Tree& args = spec.at("init_args");
  if (name == "LambdaLR") return make_with_functions<fabric::LambdaLR>(optimizer, args);
  if (name == "MultiplicativeLR") return make_with_functions<fabric::MultiplicativeLR>(optimizer, args);
  if (name == "SequentialLR") return make_sequence(optimizer, args);
  if (args.find("scale_fn")) {
    auto config = fabric::from_tree<fabric::CyclicLR::Config>(without(args, "scale_fn"));
    config.scale_fn = [](double x) { return 0.5 * (1 + std::sin(x * kPi / 2.0)); };
    return std::make_shared<fabric::CyclicLR>(optimizer, config);
  }
  return fabric::make_lr_scheduler("torch.optim.lr_scheduler." + name, args, optimizer);
}

struct Case {
  Tree spec;
  at::Tensor lrs, momenta, metrics, epochs;  // undefined where there are none
};

std::vector<Case> recorded() {
  std::ifstream file(FABRIC_PARITY_DATA "/lr_schedulers.json");
  std::stringstream text;
  text << file.rdbuf();
  auto numbers = fabric::make_checkpoint_io()->load(FABRIC_PARITY_DATA "/lr_schedulers.safetensors");
  std::vector<Case> cases;
  const Tree runs = fabric::read_json(text.str()).at("runs");
  for (const Tree& spec : runs.as_list()) {
    auto tensor = [&](const char* name) {
      const Value* found = numbers.find(std::to_string(cases.size()) + "." + name);
      return found ? found->as<at::Tensor>() : at::Tensor();
    };
    Case each{spec, tensor("lrs"), tensor("momenta"), tensor("metrics"), tensor("epochs")};
    cases.push_back(std::move(each));
  }
  return cases;
}

torch::optim::OptimizerParamGroup one_parameter() { return {std::vector<at::Tensor>{torch::zeros({2})}}; }

// One case: an optimizer and its schedulers, stepped and compared.
class Run {
 public:
  Run(const Case& recorded, const std::string& prefix) : case_(recorded), prefix_(prefix) { make(); }

  double lr_difference = 0, momentum_difference = 0;

  void compare(std::int64_t row) {
    auto& groups = optimizer_->param_groups();
    for (std::size_t g = 0; g < groups.size(); ++g) {
      auto column = static_cast<std::int64_t>(g);
      note(lr_difference, fabric::get_lr(groups[g]), case_.lrs[row][column].item<double>());
      if (case_.momenta.defined())
        note(momentum_difference, *fabric::get_momentum(groups[g]), case_.momenta[row][column].item<double>());
    }
  }

  void step(std::int64_t at) {
    grow(at);
    for (auto& scheduler : schedulers_) {
      if (case_.metrics.defined())
        scheduler->step(case_.metrics[at].item<double>());
      else if (case_.epochs.defined())
        dynamic_cast<fabric::CosineAnnealingWarmRestarts&>(*scheduler).step_to(case_.epochs[at].item<double>());
      else
        scheduler->step();
    }
  }

  // Another process that continues: everything is made anew and takes over what was saved.
  void save_and_load() {
    std::vector<std::string> states;
    for (auto& scheduler : schedulers_) states.push_back(fabric::write_json(fabric::to_tree(scheduler->state_dict())));
    auto before = optimizer_;
    make();
    for (std::size_t i = 0; i < states.size(); ++i)
      schedulers_[i]->load_state_dict(fabric::to_value(fabric::read_json(states[i])));
    auto& groups = optimizer_->param_groups();
    for (std::size_t g = 0; g < before->param_groups().size(); ++g) {
      if (g == groups.size()) optimizer_->add_param_group(one_parameter());
      fabric::set_lr(groups[g], fabric::get_lr(before->param_groups()[g]));
      if (auto momentum = fabric::get_momentum(before->param_groups()[g])) fabric::set_momentum(groups[g], *momentum);
    }
  }

 private:
  static void note(double& worst, double ours, double theirs) {
    double difference = std::abs(ours - theirs) / std::max(std::abs(theirs), 1e-6);
    if (!(difference <= worst)) worst = difference;
  }

  void make() {
    schedulers_.clear();
    const Tree* name = case_.spec.find("optimizer");
    const Tree* args = case_.spec.find("optimizer_args");
    const auto& lrs = case_.spec.at("lrs").as_list();
    std::vector<torch::optim::OptimizerParamGroup> groups;
    for (std::size_t g = 0; g < lrs.size(); ++g) groups.push_back(one_parameter());
    optimizer_ = fabric::make_optimizer(prefix_ + (name ? name->as_string() : "SGD"), args ? *args : Tree(), groups);
    for (std::size_t g = 0; g < lrs.size(); ++g) fabric::set_lr(optimizer_->param_groups()[g], lrs[g].as_double());
    auto initial = fabric::shared_initial_lrs(*optimizer_);
    if (const Tree* given = case_.spec.find("initial_lrs"))
      for (const Tree& lr : given->as_list()) initial->push_back(lr.as_double());
    for (const Tree& spec : case_.spec.at("schedulers").as_list())
      schedulers_.push_back(make_scheduler(*optimizer_, spec));
  }

  void grow(std::int64_t at) {
    const Tree* additions = case_.spec.find("grow");
    if (!additions) return;
    for (const Tree& each : additions->as_list()) {
      if (each.as_list()[0].as_int() != at) continue;
      optimizer_->add_param_group(one_parameter());
      fabric::set_lr(optimizer_->param_groups().back(), each.as_list()[2].as_double());
      schedulers_[0]->grow(each.as_list()[1].as_double());
    }
  }

  const Case& case_;
  std::string prefix_;
  std::shared_ptr<torch::optim::Optimizer> optimizer_;
  std::vector<std::shared_ptr<LRScheduler>> schedulers_;
};

void check(const Case& recorded, const std::string& prefix, std::int64_t save_at) {
  Run run(recorded, prefix);
  run.compare(0);
  for (std::int64_t step = 0; step + 1 < recorded.lrs.size(0); ++step) {
    if (step == save_at) run.save_and_load();
    run.step(step);
    run.compare(step + 1);
  }
  INFO(fabric::write_json(recorded.spec) << " with " << prefix << "optimizer, saved at " << save_at);
  CHECK(run.lr_difference <= 1e-12);
  CHECK(run.momentum_difference <= 1e-12);
}

}  // namespace

TEST_CASE("Learning rates and momenta are PyTorch's over 200 steps", "[lr][parity]") {
  auto cases = recorded();
  REQUIRE(cases.size() > 60);
  for (const auto& each : cases) {
    REQUIRE(each.lrs.defined());
    check(each, "", -1);
  }
}

TEST_CASE("A schedule that is saved and loaded on the way goes on with the same numbers", "[lr][parity]") {
  for (const auto& each : recorded())
    for (std::int64_t save_at : {1, 13, 51, 120}) check(each, "", save_at);
}

TEST_CASE("The fused optimizers are scheduled like LibTorch's", "[lr][parity]") {
  int fused = 0;
  for (const auto& each : recorded()) {
    const Tree* optimizer = each.spec.find("optimizer");
    if (!optimizer || optimizer->as_string() == "RMSprop") continue;
    check(each, "Fused", 100);
    ++fused;
  }
  CHECK(fused > 5);
}

// Regions of a module whose class knows nothing of them: where the operators of a forward pass come to another unit's
// parameters, one region ends and the next begins.
#include <fabric/strategies/activation_checkpointing.h>

#include <torch/nn/modules/linear.h>

#include <algorithm>
#include <iomanip>
#include <mutex>
#include <sstream>
#include <unordered_map>

#include <ATen/autocast_mode.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/graph_task.h>

#include <fabric/base/error.h>
#include <fabric/base/lifecycle.h>

#include "strategies/activation/tape.h"
#include "strategies/sharded/unit_plan.h"

namespace fabric::detail::activation {

constexpr int kNoUnit = -1;

struct CheckpointedUnit {
  std::string name;
  CheckpointOptions options = {};
};

/// What is known of the module; passes that are under way share it.
struct CheckpointedUnits {
  std::vector<CheckpointedUnit> units;
  std::unordered_map<const at::TensorImpl*, int> unit_of;  // of each parameter
  std::unordered_set<const at::TensorImpl*> fixed;         // parameters and buffers
  std::vector<at::Tensor> tensors;                         // so that no address is used again
  bool sees_executed = false;                              // operators below autograd are of interest
};

namespace {

bool lies_within(const std::string& name, const std::string& unit) {
  return name == unit ||
         (name.size() > unit.size() && name.compare(0, unit.size(), unit) == 0 && name[unit.size()] == '.');
}

std::vector<std::string> unit_names(const torch::nn::Module& module, const ActivationCheckpointing::Config& config) {
  sharded::IsUnit is_unit = config.unit_if;
  const bool by_blocks = !is_unit && config.units.empty();
  if (!is_unit) is_unit = by_blocks ? sharded::blocks_of(module) : sharded::units_by_pattern(module, config.units);
  std::vector<std::string> names;
  for (const auto& item : module.named_modules())
    if (!item.key().empty() && is_unit(item.key(), *item.value())) names.push_back(item.key());
  if (!by_blocks) return names;
  // Without what stands around the blocks, where there are any: embeddings, the last layer.
  std::vector<std::string> blocks;
  std::copy_if(names.begin(), names.end(), std::back_inserter(blocks),
               [](const std::string& name) { return name.find('.') != std::string::npos; });
  return blocks.empty() ? names : blocks;
}

// Of the Linears in a unit whose names hold one of the texts: the right-hand sides of their products.
std::vector<std::pair<std::int64_t, std::int64_t>> shapes_to_recompute(const torch::nn::Module& module,
                                                                       const std::string& unit,
                                                                       const std::vector<std::string>& texts) {
  std::vector<std::pair<std::int64_t, std::int64_t>> shapes;
  for (const auto& item : module.named_modules()) {
    auto holds = [&](const std::string& text) { return item.key().find(text) != std::string::npos; };
    if (!lies_within(item.key(), unit) || std::none_of(texts.begin(), texts.end(), holds)) continue;
    if (const auto* linear = dynamic_cast<const torch::nn::LinearImpl*>(item.value().get()))
      shapes.emplace_back(linear->options.in_features(), linear->options.out_features());
    else if (!item.value()->named_parameters(/*recurse=*/false).is_empty() || item.value()->children().empty())
      throw ConfigError("activation_checkpointing: 'recompute' is about Linear layers, but " + item.key() + " is a " +
                        item.value()->name() + ". Give a longer part of the name of the Linear that is meant");
  }
  return shapes;
}

CheckpointedUnits find_units(const torch::nn::Module& module, const ActivationCheckpointing::Config& config) {
  CheckpointedUnits out;
  for (const auto& name : unit_names(module, config)) {
    CheckpointOptions options{.policy = config.policy,
                              .preserve_rng_state = config.preserve_rng_state,
                              .determinism_check = config.determinism_check,
                              .early_stop = config.early_stop,
                              .offload = config.offload};
    if (!options.policy && config.mode == "selective")
      options.policy = selective_saving({.save = config.save,
                                         .recompute_shapes = shapes_to_recompute(module, name, config.recompute),
                                         .every_second_mm = config.every_second_mm});
    out.sees_executed |= options.policy || config.report;
    out.units.push_back({name, std::move(options)});
  }
  if (out.units.empty())
    throw ConfigError("activation_checkpointing: the module has no unit. Name some with 'units', or with 'unit_if'");
  auto take = [&](const at::Tensor& tensor) {
    out.fixed.insert(tensor.unsafeGetTensorImpl());
    out.tensors.push_back(tensor);
  };
  for (const auto& item : module.named_modules()) {
    int owner = kNoUnit;  // the innermost
    for (std::size_t i = 0; i < out.units.size(); ++i)
      if (lies_within(item.key(), out.units[i].name) &&
          (owner == kNoUnit || out.units[i].name.size() > out.units[static_cast<std::size_t>(owner)].name.size()))
        owner = static_cast<int>(i);
    for (const auto& parameter : item.value()->parameters(/*recurse=*/false)) {
      if (!parameter.defined()) continue;
      take(parameter);
      out.unit_of.emplace(parameter.unsafeGetTensorImpl(), owner);
    }
    for (const auto& buffer : item.value()->buffers(/*recurse=*/false))
      if (buffer.defined()) take(buffer);
  }
  return out;
}

}  // namespace

/// One forward pass.
class Pass : public FirstRunClient {
 public:
  Pass(std::shared_ptr<const CheckpointedUnits> units, bool reports)
      : units_(std::move(units)),
        reports_(reports),
        outside_(present),
        outer_backward_(torch::autograd::get_current_graph_task_id()) {}

  // A model within a model is looked at by its own pass alone.
  const void* kind() const override {
    static const char kKind = 0;
    return &kKind;
  }

  void operator_called(dispatch::OperatorCall& call) override {
    if (present != outside_ || torch::autograd::get_current_graph_task_id() != outer_backward_) return call.proceed();
    const bool trains = c10::GradMode::is_enabled() && is_trained(call);
    follow(call, trains);
    if (!writer_) return call.proceed();
    auto outcome = TapeWriter::Outcome::left_out;
    if (trains) {
      outcome = writer_->record(call);
      if (outcome == TapeWriter::Outcome::recorded) return;
      if (outcome == TapeWriter::Outcome::over) {
        close();
        return call.proceed();
      }
    } else {
      writer_->expect_changes(call);
      call.proceed();
    }
    // Its random numbers would be missing when the region runs again.
    if (call.op().hasTag(at::Tag::nondeterministic_seeded)) close();
  }

  /// What is executed within a recorded operator.
  void executed(dispatch::OperatorCall& call) {
    const bool in_region = writer_ && present == Present{&writer_->frame(), false};
    if (!in_region || !writer_->frame().kept() || call.op().schema().name() == "aten::detach") return call.proceed();
    writer_->frame().kept()->first_run(call);
  }

  void close() {
    if (!writer_) return;
    writer_->frame().report_inputs();
    writer_.reset();
  }
  std::vector<CheckpointReport> reports() const {
    std::vector<CheckpointReport> all;
    for (const auto& report : made_reports_) all.push_back(*report);
    return all;
  }

 private:
  static bool is_trained(const dispatch::OperatorCall& call) {
    bool trained = false;
    for (const auto& argument : call.arguments())
      for_each_tensor_in(argument, [&](const at::Tensor& tensor) {
        trained = trained || (tensor.defined() && tensor.requires_grad());
      });
    return trained;
  }

  void follow(const dispatch::OperatorCall& call, bool trains) {
    const at::TensorImpl* touched = nullptr;
    int unit = kNoUnit;
    for (const auto& argument : call.arguments())
      for_each_tensor_in(argument, [&](const at::Tensor& tensor) {
        auto found = units_->unit_of.find(tensor.unsafeGetTensorImpl());
        if (found == units_->unit_of.end() || touched) return;
        touched = found->first;
        unit = found->second;
      });
    if (!touched) return;
    // The first parameter again: another call of the unit.
    if (writer_ && (unit != unit_ || touched == first_)) close();
    if (writer_ || unit == kNoUnit || !trains) return;
    begin(call, unit);
    first_ = touched;
  }

  void begin(const dispatch::OperatorCall& call, int unit) {
    Devices devices;
    for (const auto& argument : call.arguments())
      for_each_tensor_in(argument, [&](const at::Tensor& tensor) {
        if (tensor.defined()) add_once(devices, tensor.device());
      });
    const CheckpointedUnit& begun = units_->units[static_cast<std::size_t>(unit)];
    CheckpointOptions options = begun.options;
    if (reports_) {
      options.report = std::make_shared<CheckpointReport>();
      options.report->region = begun.name;
      made_reports_.push_back(options.report);
    }
    writer_.emplace(std::make_shared<CheckpointFrame>(options, devices), units_->fixed);
    unit_ = unit;
  }

  std::shared_ptr<const CheckpointedUnits> units_;
  bool reports_;
  Present outside_;
  int outer_backward_;
  std::optional<TapeWriter> writer_;
  int unit_ = kNoUnit;
  const at::TensorImpl* first_ = nullptr;
  std::vector<std::shared_ptr<CheckpointReport>> made_reports_;
};

struct Executed : dispatch::Client {
  explicit Executed(std::shared_ptr<Pass> pass) : pass(std::move(pass)) {}
  void operator_called(dispatch::OperatorCall& call) override { pass->executed(call); }
  std::shared_ptr<Pass> pass;
};

/// What is active while it runs.
struct ActivePass {
  ActivePass(std::shared_ptr<Pass> made, bool sees_executed)
      : pass(std::move(made)),
        operators(dispatch::Level::above_autograd, pass),
        cast_cache(at::autocast::is_autocast_cache_enabled()) {
    if (sees_executed) executed.emplace(dispatch::Level::below_autograd, std::make_shared<Executed>(pass));
    at::autocast::set_autocast_cache_enabled(false);
    ++open_passes;
  }
  ~ActivePass() {
    --open_passes;
    at::autocast::set_autocast_cache_enabled(cast_cache);
  }
  ActivePass(const ActivePass&) = delete;
  ActivePass& operator=(const ActivePass&) = delete;
  std::shared_ptr<Pass> pass;
  dispatch::Activation operators;
  std::optional<dispatch::Activation> executed;
  bool cast_cache;
};

}  // namespace fabric::detail::activation

namespace fabric {

namespace activation = detail::activation;

struct ActivationCheckpointing::Impl {
  Config config;
  std::shared_ptr<const activation::CheckpointedUnits> units;
  mutable std::mutex mutex;
  std::vector<CheckpointReport> reports;
};

void ActivationCheckpointing::Config::validate() const {
  if (mode != "none" && mode != "full" && mode != "selective")
    throw ConfigError("activation_checkpointing.mode: '" + mode + "' is not known; there are none, full and selective");
  if (!save.empty() && mode != "selective")
    throw ConfigError("activation_checkpointing.save names operators for mode selective, but the mode is " + mode);
  if (policy && mode == "selective")
    throw ConfigError("activation_checkpointing: a policy and mode selective exclude each other; leave the mode out");
  if (unit_if && !units.empty()) throw ConfigError("activation_checkpointing: units and unit_if exclude each other");
}

ActivationCheckpointing::ActivationCheckpointing(const torch::nn::Module& module, Config config)
    : impl_(std::make_shared<Impl>()) {
  FABRIC_WARN_EXPERIMENTAL("ActivationCheckpointing");
  config.validate();
  impl_->config = std::move(config);
  if (!impl_->config.is_on()) return;
  activation::require_engine();
  impl_->units = std::make_shared<const activation::CheckpointedUnits>(activation::find_units(module, impl_->config));
}
ActivationCheckpointing::~ActivationCheckpointing() = default;

Scope ActivationCheckpointing::forward_pass() {
  if (!impl_->units || !c10::GradMode::is_enabled()) return {};
  auto pass = std::make_shared<activation::Pass>(impl_->units, impl_->config.report);
  auto active = std::make_shared<std::optional<activation::ActivePass>>();
  active->emplace(std::move(pass), impl_->units->sees_executed);
  return Scope([active, impl = impl_] {
    auto done = (*active)->pass;
    active->reset();
    done->close();
    if (!impl->config.report) return;
    std::lock_guard lock(impl->mutex);
    impl->reports = done->reports();
  });
}

const ActivationCheckpointing::Config& ActivationCheckpointing::config() const { return impl_->config; }

std::vector<std::string> ActivationCheckpointing::units() const {
  std::vector<std::string> names;
  if (impl_->units)
    for (const auto& unit : impl_->units->units) names.push_back(unit.name);
  return names;
}

std::vector<CheckpointReport> ActivationCheckpointing::report() const {
  std::lock_guard lock(impl_->mutex);
  return impl_->reports;
}

std::string ActivationCheckpointing::describe() const {
  std::ostringstream text;
  auto mb = [](std::int64_t bytes) { return static_cast<double>(bytes) / 1e6; };
  text << std::left << std::setw(24) << "region" << std::right << std::setw(11) << "inputs MB" << std::setw(9)
       << "kept MB" << std::setw(8) << "kept" << std::setw(16) << "recomputed MB" << std::setw(12) << "recomputed\n"
       << std::fixed << std::setprecision(2);
  for (const auto& report : report()) {
    std::int64_t saved = 0, recomputed = 0;
    for (const auto& [name, count] : report.operators) {
      saved += count.saved;
      recomputed += count.recomputed;
    }
    text << std::left << std::setw(24) << report.region << std::right << std::setw(11) << mb(report.input_bytes)
         << std::setw(9) << mb(report.saved_bytes()) << std::setw(8) << saved << std::setw(16)
         << mb(report.recomputed_bytes()) << std::setw(11) << recomputed << '\n';
  }
  return text.str();
}

std::shared_ptr<ActivationCheckpointing> apply_activation_checkpointing(StrategyModule& model,
                                                                        ActivationCheckpointing::Config config) {
  auto made = std::make_shared<ActivationCheckpointing>(*model.module(), std::move(config));
  model.set_forward_scope(made->config().is_on() ? [made] { return made->forward_pass(); } : std::function<Scope()>());
  return made;
}

}  // namespace fabric

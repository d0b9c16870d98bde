#include <fabric/helpers/finetuning/param_groups_internal.h>

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include <ATen/ops/full_like.h>
#include <torch/optim/adagrad.h>

#include <fabric/base/error.h>
#include <fabric/helpers/lr/lr_values_internal.h>
#include <fabric/helpers/optimizer_registry.h>
#include <fabric/optim/optimizer_group.h>
#include <fabric/state/optimizer_fields_internal.h>
#include <fabric/state/state.h>

namespace fabric::param_groups {
namespace {

using torch::optim::Optimizer;
namespace fields = optimizer_fields;

struct WeightDecay {
  double* found = nullptr;
  void operator()(const char* name, double& value) {
    if (std::string_view(name) == "weight_decay") found = &value;
  }
  void operator()(const char*, auto&) {}
};

double* weight_decay_of(torch::optim::OptimizerOptions& options) {
  WeightDecay seeker;
  fields::with_family(
      options, [&]<class F>(F) { fields::visit_options<F>(static_cast<typename F::Options&>(options), seeker); });
  return seeker.found;
}

// LibTorch's Adagrad makes its state when it is built and expects it in step().
void begin_state(Optimizer& optimizer, const torch::optim::OptimizerOptions& options, const at::Tensor& tensor) {
  auto* adagrad = dynamic_cast<const torch::optim::AdagradOptions*>(&options);
  if (!adagrad) return;
  auto& state = optimizer.state()[tensor.unsafeGetTensorImpl()];
  if (state) return;
  auto fresh = std::make_unique<torch::optim::AdagradParamState>();
  fresh->step(0);
  fresh->sum(at::full_like(tensor.detach(), adagrad->initial_accumulator_value(), at::MemoryFormat::Preserve));
  state = std::move(fresh);
}

Value fresh_adagrad_state(const torch::optim::AdagradOptions& options, const at::Tensor& tensor) {
  return Value::Map{{"step", 0}, {"sum", at::full_like(tensor.detach(), options.initial_accumulator_value())}};
}

}  // namespace

Value GroupRecord::to_value() const {
  return Value::Map{{"params", Value::List(params.begin(), params.end())},
                    {"lr", lr},
                    {"initial_lr", initial_lr},
                    {"weight_decay", weight_decay}};
}

GroupRecord GroupRecord::from_value(const Value& value) {
  GroupRecord record;
  for (const auto& name : value.at("params").as_list()) record.params.push_back(name.as_string());
  record.lr = value.at("lr").as_double();
  record.initial_lr = value.at("initial_lr").as_double();
  record.weight_decay = value.at("weight_decay").as_double();
  return record;
}

std::vector<GroupRecord> records(const Optimizer& optimizer, const ModelParameters& parameters,
                                 const std::vector<double>& initial_lrs) {
  std::vector<GroupRecord> out;
  for (const auto& group : optimizer.param_groups()) {
    GroupRecord record;
    for (const auto& tensor : group.params()) {
      const std::string* name = parameters.name_of(tensor);
      if (!name)
        throw MisuseError(
            "the optimizer holds a tensor that is no parameter of the model. A fine-tuning scheduler "
            "works with an optimizer of its own model's parameters alone");
      record.params.push_back(*name);
    }
    record.lr = get_lr(group);
    record.initial_lr = out.size() < initial_lrs.size() ? initial_lrs[out.size()] : lr::kUnset;
    auto options = group.options().clone();
    if (const double* decay = weight_decay_of(*options)) record.weight_decay = *decay;
    out.push_back(std::move(record));
  }
  return out;
}

std::vector<std::string> not_owned(const Optimizer& optimizer, const ModelParameters& parameters,
                                   const std::vector<std::string>& names) {
  std::unordered_set<const void*> owned;
  for (const auto& group : optimizer.param_groups())
    for (const auto& tensor : group.params()) owned.insert(tensor.unsafeGetTensorImpl());
  std::vector<std::string> out;
  for (const auto& name : names)
    if (!owned.contains(parameters.tensor(name).unsafeGetTensorImpl())) out.push_back(name);
  return out;
}

std::vector<std::vector<std::string>> split_by_decay(const std::vector<std::string>& names,
                                                     const std::vector<std::string>& no_decay) {
  if (no_decay.empty()) return {names};
  std::vector<std::vector<std::string>> parts(2);
  for (const auto& name : names) {
    const bool exempt = std::any_of(no_decay.begin(), no_decay.end(),
                                    [&](const std::string& part) { return name.find(part) != std::string::npos; });
    parts[exempt ? 1 : 0].push_back(name);
  }
  return parts;
}

void append(Optimizer& optimizer, const std::vector<at::Tensor>& tensors, double lr, bool decays) {
  optimizer.add_param_group(torch::optim::OptimizerParamGroup(tensors));
  // Only now: options given to add_param_group that equal the constructor's defaults count as not given.
  auto& group = optimizer.param_groups().back();
  set_lr(group, lr);
  if (!decays) {
    double* decay = weight_decay_of(group.options());
    if (!decay)
      throw MisuseError("no_decay needs an optimizer with a weight decay, which " + optimizer_class(optimizer) +
                        " does not have");
    *decay = 0;
  }
  for (const auto& tensor : tensors) begin_state(optimizer, group.options(), tensor);
}

std::shared_ptr<Optimizer> make_empty(const std::string& class_path, const Tree& init_args,
                                      const std::vector<at::Tensor>& tensors) {
  std::vector<torch::optim::OptimizerParamGroup> groups;
  groups.emplace_back(tensors);
  auto optimizer = make_optimizer(class_path, init_args, std::move(groups));
  optimizer->param_groups().clear();
  optimizer->state().clear();
  return optimizer;
}

void rebuild(Optimizer& optimizer, const std::vector<GroupRecord>& groups, const ModelParameters& parameters) {
  std::vector<std::vector<at::Tensor>> tensors;  // first, so that an unknown name changes nothing
  for (const auto& record : groups) tensors.push_back(parameters.tensors(record.params));
  optimizer.param_groups().clear();
  for (std::size_t i = 0; i < groups.size(); ++i) {
    append(optimizer, tensors[i], groups[i].lr);
    if (double* decay = weight_decay_of(optimizer.param_groups().back().options())) *decay = groups[i].weight_decay;
  }
}

Value with_saved_moments(const Optimizer& optimizer, const ModelParameters& parameters, const Value& saved,
                         const std::vector<std::vector<std::string>>& names) {
  const Value* states = saved.find("state");
  const Value* groups = saved.find("param_groups");
  if (!states || !states->is_map() || !groups || !groups->is_list())
    throw CheckpointKeyError("the optimizer's entry is no state of an optimizer");
  std::vector<std::string> flat;
  for (const auto& group : names) flat.insert(flat.end(), group.begin(), group.end());
  std::unordered_map<std::string, const Value*> by_name;
  for (const auto& [index, state] : states->as_map()) {
    const bool is_number =
        !index.empty() && index.size() < 10 && index.find_first_not_of("0123456789") == std::string::npos;
    const std::size_t at = is_number ? std::stoul(index) : flat.size();
    if (at >= flat.size())
      throw CheckpointKeyError("the optimizer's state has a parameter '" + index + "' that was in none of its groups");
    by_name.emplace(flat[at], &state);
  }
  Value now = optimizer_state_dict(optimizer);
  Value::Map moments;
  std::int64_t index = 0;
  for (const auto& group : optimizer.param_groups())
    for (const auto& tensor : group.params()) {
      const std::string label = std::to_string(index++);
      auto found = by_name.find(*parameters.name_of(tensor));
      if (found != by_name.end())
        moments.append(label, *found->second);
      else if (auto* adagrad = dynamic_cast<const torch::optim::AdagradOptions*>(&group.options()))
        moments.append(label, fresh_adagrad_state(*adagrad, tensor));
    }
  now["state"] = std::move(moments);
  return now;
}

}  // namespace fabric::param_groups

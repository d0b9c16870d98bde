#include <fabric/helpers/finetuning/reinit_config.h>

#include <algorithm>
#include <cmath>

#include <ATen/ops/zeros.h>
#include <torch/optim/sgd.h>

#include <fabric/base/error.h>
#include <fabric/base/nearest_name.h>
#include <fabric/helpers/finetuning/finetuning_schedule.h>
#include <fabric/helpers/lr/lr_scheduler_registry.h>
#include <fabric/helpers/lr/lr_scheduler_support_internal.h>
#include <fabric/helpers/optimizer_registry.h>

namespace fabric {
namespace {

using Keys = std::vector<std::string>;

[[noreturn]] void fail(const ReinitPlace& place, const std::string& what) {
  throw ConfigError(place.where + ": " + what);
}

void require_map(const Tree& tree, const Keys& keys, const ReinitPlace& place) {
  if (!tree.is_map()) fail(place, std::string("should be a map, given ") + tree.kind());
  for (const auto& [key, value] : tree.as_map())
    if (std::find(keys.begin(), keys.end(), key) == keys.end())
      fail(place, "'" + key + "' is unknown" + did_you_mean(key, keys));
}

ReinitPlace inside(const ReinitPlace& place, const std::string& key) {
  ReinitPlace inner = place;
  inner.where += "." + key;
  return inner;
}

ClassInit read_class(const Tree& tree, const char* key, const char* example, const ReinitPlace& place) {
  const Tree* init = tree.find(key);
  if (!init)
    fail(place,
         std::string("'") + key + "' is missing; write {" + key + ": {class_path: " + example + ", init_args: {…}}}");
  require_map(*init, {"class_path", "init_args"}, inside(place, key));
  ClassInit out;
  const Tree* path = init->find("class_path");
  if (!path || !path->is_string() || path->as_string().empty())
    fail(inside(place, key), std::string("'class_path' is missing; write for instance class_path: ") + example);
  out.class_path = path->as_string();
  if (const Tree* arguments = init->find("init_args"); arguments && !arguments->is_null()) {
    if (!arguments->is_map())
      fail(inside(place, key), std::string("'init_args' should be a map, given ") + arguments->kind());
    out.init_args = *arguments;
  }
  return out;
}

std::vector<torch::optim::OptimizerParamGroup> dummy_groups(std::size_t count) {
  std::vector<torch::optim::OptimizerParamGroup> groups;
  for (std::size_t i = 0; i < count; ++i)
    groups.emplace_back(std::vector<at::Tensor>{at::zeros({1}, at::TensorOptions().requires_grad(true))});
  return groups;
}

// The optimizer that a scheduler will work on is not there yet; momentum, because some schedulers cycle it.
torch::optim::SGD dummy_optimizer(std::size_t groups) {
  return torch::optim::SGD(dummy_groups(groups), torch::optim::SGDOptions(0.1).momentum(0.9));
}

LRStepping read_stepping(const Tree& tree, const ReinitPlace& place, const FinetuningMessages& messages) {
  static const Keys kKeys{"name", "interval", "frequency", "reduce_on_plateau", "monitor", "strict"};
  LRStepping stepping;
  if (tree.is_null()) return stepping;
  if (!tree.is_map()) fail(place, std::string("should be a map, given ") + tree.kind());
  Tree::Map known;
  for (const auto& [key, value] : tree.as_map()) {
    if (std::find(kKeys.begin(), kKeys.end(), key) == kKeys.end())
      messages.warn(place.where + ": '" + key + "' is unknown and ignored" + did_you_mean(key, kKeys));
    else if (key != "reduce_on_plateau" && !value.is_null())  // the class says so itself
      known.append(key, value);
  }
  try {
    return from_tree<LRStepping>(known);
  } catch (const ConfigError& error) {
    fail(place, error.what());
  }
}

std::vector<double> read_lrs(const Tree& tree, const ReinitPlace& place) {
  if (!tree.is_list()) fail(place, std::string("should be a list of learning rates, given ") + tree.kind());
  std::vector<double> lrs;
  for (const Tree& item : tree.as_list()) {
    auto lr = lr_number(item);
    if (!lr || !std::isfinite(*lr)) fail(place, "entry " + std::to_string(lrs.size()) + " is no number");
    lrs.push_back(*lr);
  }
  return lrs;
}

std::size_t groups_to_try(const ClassInit& init) {
  std::size_t groups = 1;
  for (const auto& [key, value] : init.init_args.as_map())
    if (value.is_list() && key == "min_lr") groups = std::max(groups, value.as_list().size());
  return groups;
}

void try_lr_scheduler(const ClassInit& init, const std::string& monitor, const ReinitPlace& place,
                      const FinetuningMessages& messages) {
  auto optimizer = dummy_optimizer(groups_to_try(init));
  std::unique_ptr<LRScheduler> made;
  try {
    made = make_lr_scheduler(init.class_path, init.init_args, optimizer);
  } catch (const Error& error) {
    fail(place, error.what());
  }
  require_supported(*made, place.allow_untested, place.where, messages);
  if (made->needs_metric() && monitor.empty())
    fail(place, std::string(made->name()) + " needs a metric: add pl_lrs_cfg: {monitor: val_loss}");
}

}  // namespace

void LRStepping::validate() const {
  if (interval != "epoch" && interval != "step")
    throw ConfigError("interval '" + interval + "' is unknown" + did_you_mean(interval, {"epoch", "step"}));
  if (frequency < 1) throw ConfigError("frequency is " + std::to_string(frequency) + "; it must be at least 1");
}

Tree ClassInit::to_tree() const { return Tree::Map{{"class_path", class_path}, {"init_args", init_args}}; }

Tree LRSchedulerReinit::to_tree() const {
  Tree::Map out{{"lr_scheduler_init", lr_scheduler_init.to_tree()}, {"pl_lrs_cfg", fabric::to_tree(stepping)}};
  if (!init_pg_lrs.empty()) out["init_pg_lrs"] = Tree::List(init_pg_lrs.begin(), init_pg_lrs.end());
  out["use_current_optimizer_pg_lrs"] = use_current_optimizer_pg_lrs;
  return out;
}

OptimizerReinit read_optimizer_reinit(const Tree& tree, const ReinitPlace& place) {
  require_map(tree, {"optimizer_init"}, place);
  OptimizerReinit reinit{read_class(tree, "optimizer_init", "torch.optim.AdamW", place)};
  if (reinit.optimizer_init.class_path.ends_with("ZeroRedundancyOptimizer"))
    fail(place, "ZeroRedundancyOptimizer cannot be made anew in the middle of training; name the optimizer it wraps");
  try {
    make_optimizer(reinit.optimizer_init.class_path, reinit.optimizer_init.init_args, dummy_groups(1));
  } catch (const Error& error) {
    fail(place, error.what());
  }
  return reinit;
}

LRSchedulerReinit read_lr_scheduler_reinit(const Tree& tree, const ReinitPlace& place,
                                           const FinetuningMessages& messages) {
  require_map(tree, {"lr_scheduler_init", "pl_lrs_cfg", "init_pg_lrs", "use_current_optimizer_pg_lrs"}, place);
  LRSchedulerReinit reinit;
  reinit.lr_scheduler_init = read_class(tree, "lr_scheduler_init", "torch.optim.lr_scheduler.StepLR", place);
  auto& arguments = reinit.lr_scheduler_init.init_args.as_map();
  if (arguments.erase("optimizer"))
    messages.warn(place.where + ": 'optimizer' in init_args is ignored; the scheduler gets the present one");
  if (const Tree* min_lr = arguments.find("min_lr"); min_lr && min_lr->is_list() && !place.is_explicit)
    fail(place,
         "min_lr is a list, but each phase has more groups than the one before. Give one number, or write the "
         "scheduler into the phases of an explicit schedule");
  if (const Tree* found = tree.find("pl_lrs_cfg"))
    reinit.stepping = read_stepping(*found, inside(place, "pl_lrs_cfg"), messages);
  if (const Tree* found = tree.find("use_current_optimizer_pg_lrs"); found && !found->is_null()) {
    if (!found->is_bool()) fail(place, "'use_current_optimizer_pg_lrs' is true or false");
    reinit.use_current_optimizer_pg_lrs = found->as_bool();
  }
  if (const Tree* found = tree.find("init_pg_lrs"); found && !found->is_null()) {
    if (!place.is_explicit)
      fail(place,
           "'init_pg_lrs' cannot be given for all phases at once, as each has more groups than the one before. "
           "Leave it out, or write it into the phases of an explicit schedule");
    reinit.init_pg_lrs = read_lrs(*found, inside(place, "init_pg_lrs"));
    messages.warn(place.where + ": the " + std::to_string(reinit.init_pg_lrs.size()) +
                  " numbers of init_pg_lrs go to the first groups in order; see that there are as many groups");
  }
  try_lr_scheduler(reinit.lr_scheduler_init, reinit.stepping.monitor, place, messages);
  return reinit;
}

}  // namespace fabric

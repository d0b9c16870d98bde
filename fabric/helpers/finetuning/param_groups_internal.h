#pragma once

#include <memory>
#include <string>
#include <vector>

#include <torch/optim/optimizer.h>

#include <fabric/base/value.h>
#include <fabric/helpers/finetuning/model_parameters.h>

// The groups of an optimizer, by the names of their parameters.
namespace fabric::param_groups {

/// One group as it is saved: what must be there before an optimizer's own state can be loaded.
struct FABRIC_API GroupRecord {
  std::vector<std::string> params;
  double lr = 0;
  double initial_lr = 0;  // NaN: not set
  double weight_decay = 0;
  Value to_value() const;
  static GroupRecord from_value(const Value& value);
};

/// `initial_lrs` may be shorter than the list of groups; what it lacks is not set. A tensor that is no parameter of the
/// model throws MisuseError.
FABRIC_API std::vector<GroupRecord> records(const torch::optim::Optimizer& optimizer, const ModelParameters& parameters,
                                            const std::vector<double>& initial_lrs);

/// Those of `names` that are in none of the optimizer's groups.
FABRIC_API std::vector<std::string> not_owned(const torch::optim::Optimizer& optimizer,
                                              const ModelParameters& parameters, const std::vector<std::string>& names);

/// Splits names into those without and those with one of the `no_decay` substrings; one list when there are none.
FABRIC_API std::vector<std::vector<std::string>> split_by_decay(const std::vector<std::string>& names,
                                                                const std::vector<std::string>& no_decay);

/// Appends a group with the optimizer's default options, this lr and, for `decays` false, a weight decay of 0.
FABRIC_API void append(torch::optim::Optimizer& optimizer, const std::vector<at::Tensor>& tensors, double lr,
                       bool decays = true);

/// An optimizer of that class (see fabric/helpers/optimizer_registry.h) without groups and state; `tensors` are some
/// that it will have, since none can be made without.
FABRIC_API std::shared_ptr<torch::optim::Optimizer> make_empty(const std::string& class_path, const Tree& init_args,
                                                               const std::vector<at::Tensor>& tensors);

/// Replaces all groups by those recorded, with default options but for lr and weight decay.
FABRIC_API void rebuild(torch::optim::Optimizer& optimizer, const std::vector<GroupRecord>& groups,
                        const ModelParameters& parameters);

/// Loads the moments that a checkpoint holds, by name: `saved` is the optimizer's state in the file, `names` the names
/// of its parameters by group. Groups, options and learning rates stay as they are; parameters that the file knows
/// nothing of begin anew. Throws CheckpointKeyError, with nothing changed, when the state does not fit.
FABRIC_API Value with_saved_moments(const torch::optim::Optimizer& optimizer, const ModelParameters& parameters,
                                    const Value& saved, const std::vector<std::vector<std::string>>& names);

}  // namespace fabric::param_groups

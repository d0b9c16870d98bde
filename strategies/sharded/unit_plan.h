#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <torch/nn/module.h>

namespace fabric::sharded {

struct PlannedParameter {
  std::string name;
  at::Tensor tensor;
  const torch::nn::Module* owner = nullptr;
  /// It is computed with in its own type, whatever the settings say.
  bool keeps_type = false;
};

/// A unit that is to be: its name and its parameters.
struct UnitPlan {
  std::string name;
  std::vector<PlannedParameter> parameters = {};
  /// The modules that own them, for filling what is on the meta device.
  std::vector<std::shared_ptr<torch::nn::Module>> owners = {};
};

/// Whether a module is a unit, with what is below it and in no unit of its own.
using IsUnit = std::function<bool(const std::string& name, const torch::nn::Module& module)>;

/// The blocks of a model: children of module lists and sequences, other than those inside of a block; what remains, by
/// child of the root.
IsUnit blocks_of(const torch::nn::Module& module);
/// Modules with at least that many elements that are in no smaller unit; those inside count first.
IsUnit units_of_size(const torch::nn::Module& module, std::int64_t min_elements);
/// By patterns (`*` stands for any text) over dotted names and over class names, with or without namespace and "Impl".
/// Throws ConfigError for a pattern that nothing matches.
IsUnit units_by_pattern(const torch::nn::Module& module, const std::vector<std::string>& patterns);

/// Which parameters go together. Each is in one unit, that of the first name that leads to it. `ignored`: patterns of
/// names, of parameters or of modules, that are left out; throws ConfigError where nothing matches.
std::vector<UnitPlan> plan_units(torch::nn::Module& module, const IsUnit& is_unit,
                                 const std::vector<std::string>& ignored);

}  // namespace fabric::sharded

#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include <ATen/core/Tensor.h>

#include <fabric/export.h>

namespace torch::nn {
class Module;
}

namespace fabric {

/// A module's parameters by name, in the order of registration. A tensor that is registered under several names (tied
/// weights, a module used twice) counts once, under its first name; the others are its aliases.
class FABRIC_API ModelParameters {
 public:
  explicit ModelParameters(const torch::nn::Module& module);

  const std::vector<std::string>& names() const { return names_; }
  bool contains(const std::string& name) const { return tensors_.contains(name); }
  /// Throws ConfigError naming the nearest for an unknown name.
  const at::Tensor& tensor(const std::string& name) const;
  std::vector<at::Tensor> tensors(const std::vector<std::string>& names) const;
  /// The same names as the model has them in order.
  std::vector<std::string> in_order(const std::vector<std::string>& names) const;
  /// The first name of a tensor; null for one that is no parameter of this module.
  const std::string* name_of(const at::Tensor& tensor) const;
  /// The name that `alias` stands for; null when it is no alias.
  const std::string* source_of(const std::string& alias) const;
  bool is_module(const std::string& path) const { return modules_.contains(path); }
  /// All names below a module, aliases included, in the order of registration.
  std::vector<std::string> below(const std::string& module_path) const;

 private:
  std::vector<std::string> names_;
  std::vector<std::string> all_names_;
  std::unordered_map<std::string, at::Tensor> tensors_;
  std::unordered_map<std::string, std::string> aliases_;
  std::unordered_map<const void*, std::string> by_tensor_;
  std::unordered_map<std::string, bool> modules_;
};

/// The module's class without namespaces and "Impl", as a part of file names: "Bert" for `app::BertImpl`.
FABRIC_API std::string class_name(const torch::nn::Module& module);

}  // namespace fabric

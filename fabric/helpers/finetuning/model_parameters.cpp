#include <fabric/helpers/finetuning/model_parameters.h>

#include <cctype>
#include <typeinfo>
#include <unordered_set>

#include <c10/util/Type.h>
#include <torch/nn/module.h>

#include <fabric/base/error.h>
#include <fabric/base/nearest_name.h>

namespace fabric {

ModelParameters::ModelParameters(const torch::nn::Module& module) {
  for (const auto& item : module.named_parameters()) {
    all_names_.push_back(item.key());
    auto [known, is_new] = by_tensor_.emplace(item.value().unsafeGetTensorImpl(), item.key());
    if (!is_new) {
      aliases_.emplace(item.key(), known->second);
      continue;
    }
    names_.push_back(item.key());
    tensors_.emplace(item.key(), item.value());
  }
  for (const auto& item : module.named_modules("", /*include_self=*/false)) modules_.emplace(item.key(), true);
}

const at::Tensor& ModelParameters::tensor(const std::string& name) const {
  auto found = tensors_.find(name);
  if (found == tensors_.end())
    throw ConfigError("the model has no parameter '" + name + "'" + did_you_mean(name, names_));
  return found->second;
}

std::vector<at::Tensor> ModelParameters::tensors(const std::vector<std::string>& names) const {
  std::vector<at::Tensor> out;
  for (const auto& name : names) out.push_back(tensor(name));
  return out;
}

std::vector<std::string> ModelParameters::in_order(const std::vector<std::string>& names) const {
  const std::unordered_set<std::string> wanted(names.begin(), names.end());
  std::vector<std::string> out;
  for (const auto& name : names_)
    if (wanted.contains(name)) out.push_back(name);
  return out;
}

const std::string* ModelParameters::name_of(const at::Tensor& tensor) const {
  auto found = by_tensor_.find(tensor.unsafeGetTensorImpl());
  return found == by_tensor_.end() ? nullptr : &found->second;
}

const std::string* ModelParameters::source_of(const std::string& alias) const {
  auto found = aliases_.find(alias);
  return found == aliases_.end() ? nullptr : &found->second;
}

std::vector<std::string> ModelParameters::below(const std::string& module_path) const {
  std::vector<std::string> out;
  for (const auto& name : all_names_)
    if (name.size() > module_path.size() && name[module_path.size()] == '.' && name.starts_with(module_path))
      out.push_back(name);
  return out;
}

std::string class_name(const torch::nn::Module& module) {
  std::string name = c10::demangle(typeid(module).name());
  name.resize(std::min(name.size(), name.find('<')));
  if (std::size_t scope = name.rfind("::"); scope != std::string::npos) name = name.substr(scope + 2);
  if (name.size() > 4 && name.ends_with("Impl")) name.resize(name.size() - 4);
  std::erase_if(name, [](unsigned char c) { return !std::isalnum(c) && c != '_'; });
  return name.empty() ? "Model" : name;
}

}  // namespace fabric

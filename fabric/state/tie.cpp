#include <fabric/state/tie.h>

#include <sstream>
#include <vector>

#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <fabric/base/error.h>
#include <fabric/base/nearest_name.h>

namespace fabric {
namespace {

// The dictionary of a module's own parameters, which LibTorch lets only derived classes change.
struct RegisteredParameters : torch::nn::Module {
  static auto& of(torch::nn::Module& module) { return module.*&RegisteredParameters::parameters_; }
};

template <class Layer>
at::Tensor* member_in(torch::nn::Module& module, const std::string& name) {
  auto* layer = module.as<Layer>();
  if (!layer) return nullptr;
  if (name == "weight") return &layer->weight;
  if constexpr (requires { layer->bias; })
    if (name == "bias") return &layer->bias;
  return nullptr;
}

template <class... Layer>
at::Tensor* member_in_any(torch::nn::Module& module, const std::string& name) {
  at::Tensor* found = nullptr;
  ((found = found ? found : member_in<Layer>(module, name)), ...);
  return found;
}

struct Place {
  torch::nn::Module* owner = nullptr;
  std::string name;  // within the owner

  at::Tensor& registered() const { return RegisteredParameters::of(*owner)[name]; }
  /// What the layer computes with; null for classes that are not known here.
  at::Tensor* member() const {
    using namespace torch::nn;
    return member_in_any<LinearImpl, EmbeddingImpl, EmbeddingBagImpl, Conv1dImpl, Conv2dImpl, Conv3dImpl,
                         ConvTranspose1dImpl, ConvTranspose2dImpl, ConvTranspose3dImpl, BilinearImpl, LayerNormImpl,
                         GroupNormImpl, BatchNorm1dImpl, BatchNorm2dImpl, BatchNorm3dImpl>(*owner, name);
  }
};

Place find_place(torch::nn::Module& module, const std::string& path) {
  auto dot = path.rfind('.');
  auto owner = dot == std::string::npos ? "" : path.substr(0, dot);
  Place place{.name = path.substr(dot == std::string::npos ? 0 : dot + 1)};
  if (owner.empty()) place.owner = &module;
  for (const auto& item : module.named_modules("", /*include_self=*/false))
    if (item.key() == owner) place.owner = item.value().get();
  if (place.owner && RegisteredParameters::of(*place.owner).contains(place.name)) return place;
  std::vector<std::string> names;
  for (const auto& item : module.named_parameters()) names.push_back(item.key());
  throw MisuseError("tie: the module has no parameter '" + path + "'" + did_you_mean(path, names));
}

std::string kind_text(const at::Tensor& tensor) {
  std::ostringstream text;
  text << tensor.sizes() << ' ' << tensor.scalar_type() << " on " << tensor.device();
  return text.str();
}

}  // namespace

void tie(torch::nn::Module& module, const std::string& name, const std::string& source) {
  Place place = find_place(module, name);
  const at::Tensor shared = find_place(module, source).registered();
  at::Tensor& registered = place.registered();
  at::Tensor* member = place.member();
  if (!registered.is_same(shared)) {
    if (kind_text(registered) != kind_text(shared))
      throw MisuseError("tie: '" + name + "' is " + kind_text(registered) + ", '" + source + "' is " +
                        kind_text(shared) + "; only equal ones can be one tensor");
    std::size_t known = 1 + (member && member->is_same(registered) ? 1 : 0);
    if (registered.use_count() > known)
      throw MisuseError("tie: something else still holds the old '" + name +
                        "': an optimizer (make it after tie), or a member of the module, which you assign first (" +
                        place.name + " = the tensor of '" + source + "')");
  }
  registered = shared;
  if (member) *member = shared;
}

std::string advice_to_tie(torch::nn::Module& module, const std::string& name) {
  Place place = find_place(module, name);
  const at::Tensor* member = place.member();
  if (!member || !member->defined() || member->is_same(place.registered())) return "";
  std::string source = "the other parameter's name";
  for (const auto& item : module.named_parameters())
    if (item.value().is_same(*member)) source = item.key();
  return "the layer of '" + name + "' computes with another tensor, which was assigned to its member (" + place.name +
         " = …) and left the registered parameter behind. Tie them before setup with fabric::tie(module, \"" + name +
         "\", \"" + source + "\")";
}

}  // namespace fabric

#pragma once

#include <string>

#include <fabric/export.h>

namespace torch::nn {
class Module;
}

namespace fabric {

/// Makes the parameter `name` of a module the same tensor as its parameter `source` (tied weights), before optimizers
/// are made and before setup: fabric::tie(net, "lm_head.weight", "wte.weight"). The assignment
/// `lm_head->weight = wte->weight` alone leaves the registered parameter behind: it is saved, counted and expected to
/// get a gradient, although nothing computes with it. This function changes both, the member and what is registered;
/// members of classes that are not LibTorch's cannot be seen and are assigned first. Throws MisuseError, with nothing
/// changed, for names that are not there, shapes or types that differ, and when something else still holds the old
/// tensor.
FABRIC_API void tie(torch::nn::Module& module, const std::string& name, const std::string& source);
/// A module's holder or shared pointer.
template <class Pointer>
requires requires(Pointer& module) { static_cast<torch::nn::Module&>(*module); }
void tie(Pointer&& module, const std::string& name, const std::string& source) {
  tie(static_cast<torch::nn::Module&>(*module), name, source);
}

/// What to write when the registered parameter `name` is not what its layer computes with, since another tensor was
/// assigned to the layer's member; empty when that is not so, or not known.
FABRIC_API std::string advice_to_tie(torch::nn::Module& module, const std::string& name);

}  // namespace fabric

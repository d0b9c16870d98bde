#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <variant>

#include <fabric/value.h>

namespace torch::nn {
class Module;
}
namespace torch::optim {
class Optimizer;
}

namespace fabric {

/// Anything with state of its own: loaders, schedulers, scalers, the user's classes.
class FABRIC_API Stateful {
 public:
  virtual ~Stateful() = default;
  virtual Value state_dict() const = 0;
  virtual void load_state_dict(const Value& state) = 0;
};

/// One entry of what is saved or loaded: a plain value, or an object that is asked for its state and restored in place.
/// Objects are borrowed: they must outlive the call to save or load.
class FABRIC_API StateEntry {
 public:
  StateEntry() = default;
  template <class T>
    requires(std::is_constructible_v<Value, T> && !std::is_base_of_v<StateEntry, std::decay_t<T>>)
  StateEntry(T&& value) : content_(Value(std::forward<T>(value))) {}
  StateEntry(torch::nn::Module& module) : content_(&module) {}
  StateEntry(torch::optim::Optimizer& optimizer) : content_(&optimizer) {}
  StateEntry(Stateful& object) : content_(&object) {}
  /// Module holders, shared pointers, FabricModule and FabricOptimizer: anything that `fabric_state_object` finds.
  template <class T>
    requires requires(T& object) { fabric_state_object(object); }
  StateEntry(T&& object) : StateEntry(fabric_state_object(object)) {}

  Value* value() { return std::get_if<Value>(&content_); }
  const Value* value() const { return std::get_if<Value>(&content_); }
  torch::nn::Module* module() const { return get<torch::nn::Module>(); }
  torch::optim::Optimizer* optimizer() const { return get<torch::optim::Optimizer>(); }
  Stateful* stateful() const { return get<Stateful>(); }

 private:
  template <class T>
  T* get() const {
    auto* found = std::get_if<T*>(&content_);
    return found ? *found : nullptr;
  }
  std::variant<Value, torch::nn::Module*, torch::optim::Optimizer*, Stateful*> content_;
};

/// What `Fabric::save` writes and `Fabric::load` restores, by name.
using State = OrderedMap<StateEntry>;
/// Per top-level key of the state: which of its inner keys are saved.
using StateFilter = std::map<std::string, std::function<bool(const std::string& key, const Value& value)>>;

/// A module's parameters and buffers by dotted name; the tensors are shared, not copied.
FABRIC_API Value module_state_dict(const torch::nn::Module& module);
/// Copies into the module's own tensors. Strict: a missing, unexpected or wrongly shaped entry throws CheckpointKeyError
/// naming all of them, before anything is changed. Otherwise entries that do not fit are skipped.
FABRIC_API void load_module_state_dict(torch::nn::Module& module, const Value& state, bool strict = true);
/// Options and per-parameter state by group and index, as PyTorch's `state_dict` has it.
FABRIC_API Value optimizer_state_dict(const torch::optim::Optimizer& optimizer);
FABRIC_API void load_optimizer_state_dict(torch::optim::Optimizer& optimizer, const Value& state);

}  // namespace fabric

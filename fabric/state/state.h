#pragma once

#include <concepts>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <variant>

#include <fabric/base/value.h>
#include <fabric/state/sharding.h>

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
  /// True for what brings others into the shape that their own state needs (the groups of an optimizer, say): it is
  /// restored before modules and optimizers, wherever it stands in the State.
  virtual bool restores_first() const { return false; }
  /// True for a state that differs between the ranks: a checkpoint keeps each rank's. Otherwise it keeps rank 0's,
  /// which every rank is given when it is loaded.
  virtual bool per_rank() const { return false; }
};

/// One entry of what is saved or loaded: a plain value, or an object that is asked for its state and restored in place.
/// Objects are borrowed: they must outlive the call to save or load.
class FABRIC_API StateEntry {
 public:
  StateEntry() = default;
  template <class T>
  requires(std::is_constructible_v<Value, T> && !std::is_base_of_v<StateEntry, std::decay_t<T>>) StateEntry(T&& value)
      : content_(Value(std::forward<T>(value))) {}
  StateEntry(torch::nn::Module& module) : content_(&module) {}
  StateEntry(torch::optim::Optimizer& optimizer) : content_(&optimizer) {}
  /// The variable is borrowed, and asked for the optimizer that it holds at the time.
  StateEntry(const std::shared_ptr<torch::optim::Optimizer>& variable) : content_(&variable) {}
  /// A temporary holds the same optimizer as some variable does; it is gone when the entry is asked.
  StateEntry(std::shared_ptr<torch::optim::Optimizer>&& optimizer) : StateEntry(*optimizer) {}
  template <class O>
  requires(std::derived_from<O, torch::optim::Optimizer> && !std::is_same_v<O, torch::optim::Optimizer>)
      StateEntry(const std::shared_ptr<O>& optimizer)
      : StateEntry(static_cast<torch::optim::Optimizer&>(*optimizer)) {}
  StateEntry(Stateful& object) : content_(&object) {}
  /// Shared pointers to modules, and their holders.
  template <class M>
  requires std::derived_from<M, torch::nn::Module> StateEntry(const std::shared_ptr<M>& module)
      : StateEntry(static_cast<torch::nn::Module&>(*module)) {}
  template <class T>
  requires requires(const T& holder) {
    { holder.ptr() } -> std::convertible_to<std::shared_ptr<torch::nn::Module>>;
  }
  StateEntry(const T& holder) : StateEntry(static_cast<torch::nn::Module&>(*holder.ptr())) {}
  /// FabricModule, FabricOptimizer, loaders: anything that `fabric_state_object` finds.
  template <class T>
  requires requires(T& object) { fabric_state_object(object); }
  StateEntry(T&& object) : StateEntry(fabric_state_object(object)) {}

  Value* value() { return std::get_if<Value>(&content_); }
  const Value* value() const { return std::get_if<Value>(&content_); }
  torch::nn::Module* module() const { return get<torch::nn::Module>(); }
  torch::optim::Optimizer* optimizer() const {
    if (auto* found = std::get_if<const std::shared_ptr<torch::optim::Optimizer>*>(&content_)) return (*found)->get();
    return get<torch::optim::Optimizer>();
  }
  Stateful* stateful() const { return get<Stateful>(); }
  /// Each rank's own, rather than rank 0's for all.
  bool per_rank() const { return per_rank_ || (stateful() && stateful()->per_rank()); }

 protected:
  bool per_rank_ = false;

 private:
  template <class T>
  T* get() const {
    auto* found = std::get_if<T*>(&content_);
    return found ? *found : nullptr;
  }
  std::variant<Value, torch::nn::Module*, torch::optim::Optimizer*, const std::shared_ptr<torch::optim::Optimizer>*,
               Stateful*>
      content_;
};

/// An entry that differs between the ranks: {"seen", fabric::PerRank(seen)}. The checkpoint keeps each rank's, as
/// {"per_rank": [rank 0's, rank 1's, …]} where there are several ranks. When it is loaded, each rank gets back what the
/// rank of its number saved; a rank of a number that the saving run did not have keeps what it has.
class PerRank : public StateEntry {
 public:
  template <class T>
  requires(std::is_constructible_v<StateEntry, T&&> &&
           !std::is_same_v<std::decay_t<T>, PerRank>) explicit PerRank(T&& entry)
      : StateEntry(std::forward<T>(entry)) {
    per_rank_ = true;
  }
};

/// What `Fabric::save` writes and `Fabric::load` restores, by name.
using State = OrderedMap<StateEntry>;
/// Per top-level key of the state: which of its inner keys are saved.
using StateFilter = std::map<std::string, std::function<bool(const std::string& key, const Value& value)>>;

/// A module's parameters and buffers by dotted name; the tensors are shared, not copied.
FABRIC_API Value module_state_dict(const torch::nn::Module& module);
/// Copies into the module's own tensors, converting type and device. `state` is a map of dotted names or of nested
/// maps. Strict: a missing, unexpected or wrongly shaped entry throws CheckpointKeyError naming all of them, before
/// anything is changed; a name missing for a tensor that is present under another of its names (tied weights) is none.
/// Otherwise entries that do not fit are skipped. `shard_of`: of a tensor that is spread over ranks, only the box that
/// is this rank's is read; the state holds whole ones.
FABRIC_API void load_module_state_dict(torch::nn::Module& module, const Value& state, bool strict = true,
                                       const ShardOf& shard_of = {});
/// Only the checks of a strict load.
FABRIC_API void check_module_state_dict(torch::nn::Module& module, const Value& state, const ShardOf& shard_of = {});

/// Options and per-parameter state by group and index, as PyTorch's `state_dict` has it:
/// {"state": {"0": {"step": …, "exp_avg": …}}, "param_groups": [{"lr": …, "params": [0, 1]}]}. Tensors are shared.
/// An optimizer class of the user's own that keeps neither LibTorch's options nor its state types is asked through
/// Stateful if it is one, else through its `save` (one tensor of bytes under "archive").
FABRIC_API Value optimizer_state_dict(const torch::optim::Optimizer& optimizer);
/// Copies values; also takes what Python's optimizers of the same kind wrote. Another number of groups or parameters,
/// other shapes, or state of another kind of optimizer throw CheckpointKeyError before anything is changed.
FABRIC_API void load_optimizer_state_dict(torch::optim::Optimizer& optimizer, const Value& state,
                                          const ShardOf& shard_of = {});
/// Only the checks of a load.
FABRIC_API void check_optimizer_state_dict(torch::optim::Optimizer& optimizer, const Value& state,
                                           const ShardOf& shard_of = {});

/// How collect_state and restore_state reach into modules and optimizers; a strategy that shards them has ways of its
/// own. The checks may be empty; they run before anything is changed.
struct FABRIC_API StateAccess {
  std::function<StatePart(torch::nn::Module&)> get_module;
  std::function<void(torch::nn::Module&, const Value&, bool strict)> set_module;
  std::function<StatePart(torch::optim::Optimizer&)> get_optimizer;
  std::function<void(torch::optim::Optimizer&, const Value&)> set_optimizer;
  std::function<void(torch::nn::Module&, const Value&)> check_module = {};  // strict loads only
  std::function<void(torch::optim::Optimizer&, const Value&)> check_optimizer = {};
  /// Which of the entries that are each rank's own this rank takes.
  int rank = 0;

  /// The functions above.
  static StateAccess plain();
};

/// This rank's part of what a checkpoint of this state holds; nothing is communicated. An entry that its filter leaves
/// empty vanishes. A filter for a key that is not there, an empty function, or one for an entry that is no map throws
/// MisuseError.
FABRIC_API StatePart collect_state(const State& state, const StateAccess& access, const StateFilter& filter = {});

/// Runs one step of a restore; several ranks agree after each that it went well everywhere before the next begins.
using RestoreStep = std::function<void(const std::function<void()>& step)>;
/// Restores objects in place, overwrites plain values in `target` and returns what it did not ask for. Strict: keys
/// that the checkpoint lacks throw CheckpointKeyError listing them, with nothing changed; otherwise they keep their
/// values. Tensors of the checkpoint may be stored ones (fabric/state/sharding.h).
FABRIC_API Value restore_state(State& target, Value checkpoint, const StateAccess& access, bool strict = true,
                               const RestoreStep& run = {});

}  // namespace fabric

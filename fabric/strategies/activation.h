#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/ArrayRef.h>

#include <fabric/export.h>
#include <fabric/state/tensors.h>

/// Activation checkpointing: what a part of a model computes in its forward pass is not kept for the backward pass, but
/// computed again there. Needs no strategy and no Fabric.
namespace fabric {

/// What a region keeps and what it computes again, for one run of its forward pass.
class FABRIC_API SavePolicy {
 public:
  virtual ~SavePolicy() = default;
  /// Whether the results of this operator are kept. Asked in the forward pass only, for each operator as it is executed
  /// (mm, addmm: see fabric/dispatch/operator_hooks.h). Operators that write into their arguments or return views of
  /// them are always run again.
  virtual bool save(const c10::OperatorHandle& op, c10::ArrayRef<c10::IValue> inputs,
                    c10::ArrayRef<c10::IValue> outputs) = 0;
};

/// What happened in one region: what its operators made, and whether that was kept or will be computed again.
struct CheckpointReport {
  struct Count {
    std::int64_t saved = 0, recomputed = 0;
    std::int64_t saved_bytes = 0, recomputed_bytes = 0;
  };
  /// The unit, where apply_activation_checkpointing made the region.
  std::string region = {};
  /// Of the tensors that it needs from outside, other than parameters and buffers.
  std::int64_t input_bytes = 0;
  std::map<std::string, Count> operators = {};
  std::int64_t saved_bytes() const { return sum(&Count::saved_bytes); }
  std::int64_t recomputed_bytes() const { return sum(&Count::recomputed_bytes); }

 private:
  std::int64_t sum(std::int64_t Count::*member) const {
    std::int64_t total = 0;
    for (const auto& [name, count] : operators) total += count.*member;
    return total;
  }
};

/// How a region is kept and run again.
struct CheckpointOptions {
  /// Makes a policy for each run of a region. Empty: nothing is kept but the region's inputs.
  std::function<std::unique_ptr<SavePolicy>()> policy = {};
  /// Random numbers are the same when the region runs again.
  bool preserve_rng_state = true;
  /// Shape, type and device of each tensor must be the same when the region runs again.
  bool determinism_check = true;
  /// The second run ends as soon as it has what the backward pass needs. Empty: yes, but not with a policy, which
  /// counts on all operators being run.
  std::optional<bool> early_stop = {};
  /// Filled while the region runs.
  std::shared_ptr<CheckpointReport> report = {};
  /// What is kept is moved to the host's memory, and back when the backward pass comes to it.
  bool offload = false;
};

/// What operators make within this scope is kept, when it is inside of a region that is computed again:
/// `{ auto keep = fabric::save_region(); x = attention(x); }`. On one thread, and not around a backward pass.
class [[nodiscard]] SaveRegion {
 public:
  FABRIC_API SaveRegion();
  FABRIC_API ~SaveRegion();
  SaveRegion(const SaveRegion&) = delete;
  SaveRegion& operator=(const SaveRegion&) = delete;

 private:
  struct State;
  std::unique_ptr<State> state_;
};
[[nodiscard]] inline SaveRegion save_region() { return {}; }

/// Settings of the usual policy: matrix products, convolutions and attention are kept, and of the plain products (mm)
/// every second one, the others are computed again.
struct SelectiveSaving {
  /// Operators whose results are kept, "aten::mm" or "aten::mm.default"; an unknown one is a ConfigError that names the
  /// nearest. Empty: default_saved_operators().
  std::vector<std::string> save = {};
  /// Products with a right-hand side of one of these shapes are always computed again, and do not count.
  std::vector<std::pair<std::int64_t, std::int64_t>> recompute_shapes = {};
  /// Of mm, only every second one is kept.
  bool every_second_mm = true;
};
FABRIC_API std::function<std::unique_ptr<SavePolicy>()> selective_saving(SelectiveSaving settings = {});
/// Those of the operators that this LibTorch has.
FABRIC_API std::vector<std::string> default_saved_operators();

namespace detail {

/// A region as the engine of checkpointing sees it: its types are hidden.
struct FABRIC_API CheckpointRegion {
  virtual ~CheckpointRegion() = default;
  virtual void for_each_input(const std::function<void(at::Tensor&)>& visit) = 0;
  /// Called when the inputs are present, before operators are answered with what was kept of them.
  virtual void prepare() {}
  /// Runs on the present inputs and forgets the result.
  virtual void run_again() = 0;
};

/// Holds while the region's forward pass runs.
class [[nodiscard]] CheckpointScope {
 public:
  FABRIC_API CheckpointScope(const CheckpointOptions& options, std::unique_ptr<CheckpointRegion> region);
  FABRIC_API ~CheckpointScope();
  CheckpointScope(const CheckpointScope&) = delete;
  CheckpointScope& operator=(const CheckpointScope&) = delete;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

template <class Function, class... Inputs>
struct TypedRegion final : CheckpointRegion {
  TypedRegion(Function function, const Inputs&... inputs) : function(std::move(function)), inputs(inputs...) {}
  void for_each_input(const std::function<void(at::Tensor&)>& visit) override { for_each_tensor(inputs, visit); }
  void run_again() override { std::apply(function, std::as_const(inputs)); }
  Function function;
  std::tuple<Inputs...> inputs;
};

}  // namespace detail

/// Runs `function(inputs…)`; in the backward pass it is run again for what its operators need. `function` is copied and
/// must give the same result both times; what it reads beside its inputs (a module's parameters) must not change
/// between. Tensors are found in inputs of any type that fabric/state/tensors.h knows. Nothing is done where no
/// gradient is computed. Throws MisuseError inside Python, whose own engine does this.
template <class Function, class... Inputs>
auto checkpoint(const CheckpointOptions& options, Function function, const Inputs&... inputs) {
  using Region = detail::TypedRegion<Function, Inputs...>;
  detail::CheckpointScope scope(options, std::make_unique<Region>(function, inputs...));
  return function(inputs...);
}
template <class Function, class... Inputs>
requires(!std::is_same_v<std::decay_t<Function>, CheckpointOptions>) auto checkpoint(Function function,
                                                                                     const Inputs&... inputs) {
  return checkpoint(CheckpointOptions(), std::move(function), inputs...);
}

}  // namespace fabric

#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <c10/util/intrusive_ptr.h>

#include <fabric/dispatch/operator_hooks.h>
#include <fabric/strategies/activation.h>

#include "strategies/activation/frame.h"

namespace fabric::detail::activation {

/// Where an argument of a recorded operator comes from.
struct Source {
  enum class Kind { absent, fixed, input, made };
  Kind kind = Kind::absent;
  std::uint32_t index = 0;  // of the region's inputs, or of what its operators made
  at::Tensor fixed = {};    // parameters, buffers, and numbers that became tensors
};

/// The operators of a region in their order, without the tensors between them.
class Tape : public CheckpointRegion {
 public:
  struct Argument {
    c10::IValue plain = {};  // not a tensor; a list of tensors is here without its items
    bool has_tensors = false, is_list = false;
    bool is_copied = false;  // the operator changes it in silence: running statistics
    std::vector<Source> sources = {};
  };
  struct Step {
    c10::OperatorHandle op;
    std::vector<Argument> arguments = {};
    std::uint32_t made = 0, count = 0;  // first and number of the tensors that it makes
    bool is_kept = false;               // in a save_region
  };
  explicit Tape(CheckpointFrame& frame) : frame_(frame) {}

  void for_each_input(const std::function<void(at::Tensor&)>& visit) override;
  void prepare() override;
  void run_again() override;

  std::vector<Step> steps;
  std::uint32_t made = 0;

 private:
  CheckpointFrame& frame_;
  std::vector<at::Tensor> inputs_;
  std::vector<at::Tensor> copies_;  // of what operators change in silence, in their order
};

/// Tensors in an argument or a result, those in lists among them.
template <class Visit>
void for_each_tensor_in(const c10::IValue& value, Visit&& visit) {
  if (value.isTensor()) {
    visit(value.toTensor());
  } else if (value.isTensorList() || (value.isList() && !value.isIntList() && !value.isDoubleList() &&
                                      !value.isBoolList() && !value.isSymIntList())) {
    for (const c10::IValue& item : value.toListRef())
      if (item.isTensor()) visit(item.toTensor());
  }
}

/// Writes one region's tape while the operators run for the first time.
class TapeWriter {
 public:
  /// `fixed`: the model's parameters and buffers.
  TapeWriter(std::shared_ptr<CheckpointFrame> frame, const std::unordered_set<const at::TensorImpl*>& fixed);

  enum class Outcome {
    recorded,
    left_out,  // it was run, but gradients have nothing to do with it: what it made is kept where it is needed
    over,      // it was not run and cannot belong to this region
  };
  Outcome record(dispatch::OperatorCall& call);
  /// For an operator that stays outside of the region: what the region needs of tensors that it changes is copied.
  void expect_changes(const dispatch::OperatorCall& call);
  CheckpointFrame& frame() { return *frame_; }

 private:
  // A tensor that an operator of the region made or was given, as it was then.
  struct Known {
    c10::weak_intrusive_ptr<c10::TensorImpl> tensor;  // so that its address is not used again
    std::uint32_t index;
    const void* grad_fn;
    std::uint32_t version;
  };
  using KnownTensors = std::unordered_map<const at::TensorImpl*, Known>;
  static const Known* find_in(const KnownTensors& known, const at::Tensor& tensor);
  Source source_of(const at::Tensor& tensor);
  Tape::Argument argument_of(const c10::IValue& value);
  bool changes_others(const dispatch::OperatorCall& call) const;
  bool trains(const dispatch::OperatorCall& call) const;
  void take_results(const dispatch::OperatorCall& call, Tape::Step& step);
  void forget_inputs_from(std::size_t count);

  std::shared_ptr<CheckpointFrame> frame_;
  Tape* tape_;
  const std::unordered_set<const at::TensorImpl*>& fixed_;
  KnownTensors made_, inputs_;
  std::vector<std::pair<c10::weak_intrusive_ptr<c10::StorageImpl>, std::uint32_t>> input_storages_;
};

}  // namespace fabric::detail::activation

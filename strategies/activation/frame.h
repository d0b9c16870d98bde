#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <fabric/strategies/activation.h>

#include "strategies/activation/kept_results.h"
#include "strategies/activation/surroundings.h"

namespace fabric::detail::activation {

/// The place of a tensor that autograd wanted to save; empty until the region has run again.
struct Slot {
  at::Tensor value;
};

/// Shape, type and device.
struct Meta {
  std::vector<std::int64_t> sizes;
  c10::ScalarType type;
  c10::Device device;
  explicit Meta(const at::Tensor& tensor)
      : sizes(tensor.sizes().vec()), type(tensor.scalar_type()), device(tensor.device()) {}
  bool fits(const at::Tensor& tensor) const {
    return tensor.sizes() == sizes && tensor.scalar_type() == type && tensor.device() == device;
  }
  std::string text() const;
};

/// A tensor from outside that a region needs when it runs again, held as autograd holds saved tensors, or on the host.
class KeptInput {
 public:
  KeptInput(const at::Tensor& tensor, bool offload);
  /// A leaf with the same content.
  at::Tensor leaf() const;
  /// Takes a copy, before the tensor is changed in place.
  void detach_from_original();
  std::int64_t bytes() const { return bytes_; }

 private:
  at::Tensor content() const;
  torch::autograd::SavedVariable saved_;
  at::Tensor apart_;
  c10::Device device_;
  bool requires_grad_;
  std::int64_t bytes_;
};

/// One run of a region: what was kept of it, and how it is run again.
class CheckpointFrame : public std::enable_shared_from_this<CheckpointFrame> {
 public:
  CheckpointFrame(const CheckpointOptions& options, const Devices& devices);

  void set_region(std::unique_ptr<CheckpointRegion> region) { region_ = std::move(region); }
  const CheckpointOptions& options() const { return options_; }
  const Surroundings& surroundings() const { return *surroundings_; }
  /// What sees all operators of a run; null where nothing but save_region may keep any.
  const std::shared_ptr<KeptResults>& kept() const { return kept_; }
  /// What sees the operators inside of save_region, where `kept` is null.
  const std::shared_ptr<KeptResults>& kept_of_save_regions();

  /// In the order in which the region visits its inputs.
  std::size_t keep_input(const at::Tensor& tensor);
  KeptInput& input(std::size_t index) { return inputs_[index]; }
  void forget_inputs_from(std::size_t count) {
    inputs_.erase(inputs_.begin() + static_cast<long>(count), inputs_.end());
  }
  /// Tells the report of them, once all are there.
  void report_inputs() const;
  std::size_t input_count() const { return inputs_.size(); }

  std::shared_ptr<Slot> add_slot(const at::Tensor& tensor);
  std::size_t slot_count() const { return slots_.size(); }
  void forget_slots_from(std::size_t count);
  /// The content of a slot that the first run made.
  at::Tensor content_of(Slot& slot);
  void fill_next(const at::Tensor& tensor);

 private:
  void run_again();

  CheckpointOptions options_;
  bool early_stop_;
  Devices devices_;
  std::unique_ptr<CheckpointRegion> region_;
  std::vector<KeptInput> inputs_;
  std::optional<RandomState> random_;
  std::optional<Surroundings> surroundings_;
  std::shared_ptr<KeptResults> kept_, kept_of_save_regions_;
  std::vector<std::weak_ptr<Slot>> slots_;
  std::vector<Meta> metas_;
  std::size_t filled_ = 0;
};

/// Which hooks tensors get that are saved on this thread now.
struct Present {
  CheckpointFrame* frame = nullptr;
  bool again = false;
  bool operator==(const Present&) const = default;
};
inline thread_local Present present;

class PresentFrame {
 public:
  explicit PresentFrame(Present next) : before_(std::exchange(present, next)) {}
  ~PresentFrame() { present = before_; }
  PresentFrame(const PresentFrame&) = delete;
  PresentFrame& operator=(const PresentFrame&) = delete;

 private:
  Present before_;
};

/// What a save_region looks through, whichever region is present.
struct SaveRegionClient : dispatch::Client {
  void operator_called(dispatch::OperatorCall& call) override;
};
/// Forward passes whose regions are found by operators, on this thread.
inline thread_local int open_passes = 0;

/// Puts our autograd engine, which asks for the hooks, in the place of LibTorch's. Throws MisuseError inside Python.
void require_engine();

}  // namespace fabric::detail::activation

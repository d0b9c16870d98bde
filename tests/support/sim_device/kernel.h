#pragma once

#include <functional>
#include <vector>

#include <ATen/core/Tensor.h>

#include "tests/support/sim_device/memory.h"
#include "tests/support/sim_device/order.h"

namespace sim {

/// Whose kernel runs in this thread; null outside of kernels.
const char* running_operator();
/// The stream that the running kernel is on.
Place running_place();

/// A tensor of the same shape and type as `like` over other memory.
at::Tensor tensor_over(c10::Storage storage, const at::Tensor& like, c10::DispatchKeySet keys);

/// One kernel: device tensors become CPU tensors over the same bytes, LibTorch's kernel for the CPU works on these, and
/// what it made becomes device tensors. Nothing is copied.
///
/// Order of the calls: `on_host` for each argument, `begin`, `run`, `on_device` for each result, `end`.
class Kernel {
 public:
  explicit Kernel(const char* op) : op_(op) {}

  /// The argument as the kernel sees it. Throws for tensors on two devices.
  at::Tensor on_host(const at::Tensor& argument, bool writes);
  /// A kernel without tensors runs there.
  void set_device(int device) { device_ = device; }
  int device() const { return device_ < 0 ? default_device() : device_; }
  bool has_device_tensors() const { return !arguments_.empty(); }
  /// Whether a tensor of the host with elements to walk through is among the arguments.
  bool has_host_tensors() const { return has_host_tensors_; }

  /// Notes the accesses, on the current stream of the device or on `place`.
  void begin();
  void begin(Place place);
  /// For a kernel that another thread runs, on `place`: notes its accesses. Whoever uses these bytes after that waits
  /// for its end, whatever the clocks say. Returns what the other thread has to wait for first.
  std::vector<std::shared_future<void>> begin_elsewhere(Place place, const UnderWay& work);
  /// Only waits for other threads; for operators that touch no element.
  void begin_without_access();
  void run(const std::function<void()>& work);
  at::Tensor on_device(const at::Tensor& result);
  /// Gives the arguments the shape that the kernel gave them, and notes that results were written.
  void end();
  const Access& access() const { return now_; }

 private:
  struct Argument {
    at::Tensor device, host;
    bool writes;
  };
  struct SharedBytes {
    c10::Storage device, host;
  };
  static int default_device();
  at::Tensor view_of_argument(const SharedBytes& shared, const at::Tensor& result) const;
  static const SharedBytes* find(const std::vector<SharedBytes>& all, const c10::Storage& host);
  c10::Storage host_storage(const c10::Storage& device);
  void wait_for_threads();
  void note_accesses(Place place);
  void adopt_resized();

  const char* op_;
  int device_ = -1;
  bool has_host_tensors_ = false;
  Access now_;
  std::vector<Argument> arguments_;
  std::vector<SharedBytes> given_, made_;
  std::vector<Block*> fresh_;
};

/// A kernel of the program's own, on a stream of its choice: `work` sees CPU tensors over the same bytes.
void launch(
    const c10::Stream& stream, const char* name, const std::vector<at::Tensor>& reads,
    const std::vector<at::Tensor>& writes,
    const std::function<void(const std::vector<at::Tensor>& reads, const std::vector<at::Tensor>& writes)>& work);

}  // namespace sim

#pragma once
// A limit on the memory that this process's tensors take at once, so that one machine can play the part of devices with
// little memory each.
//
// What is limited is what LibTorch's CPU allocator hands out: parameters, gradients, optimizer states, activations,
// buffers of communication. It is refused when it is asked for, as a GPU's memory is. Programs, libraries and files
// that are mapped (checkpoints that are read) do not count: they are no memory of a device. Limits of the system count
// those as well, RLIMIT_DATA for instance every private mapping that may be written.

#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <malloc.h>

#include <atomic>
#include <sstream>
#include <stdexcept>

class TensorLimit : public c10::Allocator {
 public:
  /// Counts from now on, to the end of the process. `remedy` ends the message of the error.
  explicit TensorLimit(std::string remedy) : remedy_(std::move(remedy)) {
    c10::SetCPUAllocator(this, /*priority=*/255);
  }
  /// 0: without a limit.
  void allow(int64_t bytes) { limit = bytes; }
  static int64_t now() { return used; }
  static int64_t most() { return peak; }

  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &release, c10::kCPU};
    auto more = static_cast<int64_t>(bytes);
    if (limit > 0 && used + more > limit) {
      std::ostringstream text;
      text << "this process has " << mb(used) << " MB of tensors and wants " << mb(more)
           << " MB more, which is above its limit of " << mb(limit) << " MB. " << remedy_;
      throw std::runtime_error(text.str());
    }
    void* memory = c10::alloc_cpu(bytes);
    int64_t total = used += static_cast<int64_t>(malloc_usable_size(memory));
    for (int64_t before = peak; before < total && !peak.compare_exchange_weak(before, total);) {
    }
    return {memory, memory, &release, c10::kCPU};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

  static double mb(int64_t bytes) { return std::round(static_cast<double>(bytes) / 1e5) / 10; }

 private:
  static void release(void* memory) {
    if (!memory) return;
    used -= static_cast<int64_t>(malloc_usable_size(memory));
    c10::free_cpu(memory);
  }
  inline static std::atomic<int64_t> used = 0, peak = 0, limit = 0;
  std::string remedy_;
};

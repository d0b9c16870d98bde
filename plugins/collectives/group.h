#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <fabric/base/error.h>
#include <fabric/plugins/collectives/process_group.h>

namespace fabric::collectives {

class MpiBackend;

/// What the copies of a ProcessGroup share.
struct Group {
  ProcessGroup::Config config;
  std::string backend;
  std::string name;
  int rank = 0;
  int size = 1;
  c10::Device device = c10::kCPU;
  std::chrono::milliseconds timeout{};
  RankInfo ranks;

  c10::intrusive_ptr<c10d::Store> store;                       // keys of this group; none over a caller's communicator
  mutable c10::intrusive_ptr<c10d::ProcessGroup> torch_group;  // of a single(): made when asked for
  c10::intrusive_ptr<c10d::Backend> cpu;                       // carries CPU tensors and the checks
  c10::intrusive_ptr<c10d::Backend> on_device;  // carries tensors on `device`; none: they go through the CPU
  MpiBackend* mpi = nullptr;                    // `cpu`, where that is MPI: it knows every type, and the mean

  std::string outside;  // on ranks that are no members: what their operations throw
  bool owned = true;    // else the backends belong to whoever made the LibTorch group
  bool closed = false;
  std::string failure;  // what broke the group; later calls repeat it
  int subgroups = 0;
  at::Tensor fingerprint;       // two int64 that the check reduces
  std::vector<at::Tensor> one;  // argument lists of one tensor, kept so that a call allocates none

  ~Group() { close(); }
  void close() noexcept;
  /// Throws MisuseError after shutdown, CollectiveError after a failure.
  void require_usable(const char* operation) const;
  c10d::Backend& carrier(const at::Tensor& tensor) const;
  /// Whether the tensor has to be copied to the CPU to travel.
  bool needs_staging(const at::Tensor& tensor) const { return !tensor.is_cpu() && !on_device; }
  /// Calls `work`, waits for what it returns and translates what it throws.
  template <class Start>
  void run(const char* operation, Start&& start) {
    auto begin = std::chrono::steady_clock::now();
    try {
      if (auto work = start()) work->wait();
    } catch (const std::exception& error) {
      fail(operation, error, begin);
    }
  }
  /// Remembers the failure and throws it as TimeoutError or CollectiveError.
  [[noreturn]] void fail(const char* operation, const std::exception& error,
                         std::chrono::steady_clock::time_point begin);
};

/// Joins the backends of a group into LibTorch's object.
c10::intrusive_ptr<c10d::ProcessGroup> assemble(const Group& group);

}  // namespace fabric::collectives

#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <fabric/base/error.h>

#include "plugins/collectives/health.h"
#include "plugins/collectives/identity.h"
#include "plugins/collectives/transport.h"
#include "plugins/collectives/waits/activity.h"

namespace fabric::collectives {

class WaitBoard;
struct Call;
struct Lane;

/// Of an operation to which the ranks may bring different amounts.
inline constexpr std::int64_t kAnySize = -1;
inline std::int64_t size_of(const at::Tensor& tensor) { return static_cast<std::int64_t>(tensor.nbytes()); }

/// What the copies of a ProcessGroup share: who its ranks are, what carries their tensors, and whether it still works.
class Group {
 public:
  Identity id;
  Transport transport;
  Health health;
  std::vector<at::Tensor> one;  // argument lists of one tensor, kept so that a call allocates none
  // Where ranks tell one another what they wait for, and this group's operations there; over Gloo alone, as MPI has a
  // way of its own.
  std::shared_ptr<WaitBoard> board;
  std::shared_ptr<Lane> lane;
  at::Tensor marks;               // what the check reduces
  const Call* checked = nullptr;  // the call ahead of which the ranks are being compared

  Group() = default;
  ~Group() { close(); }
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;
  void close() noexcept;
  /// Calls `start`, as all ranks of the group do, waits for the work that it returns and translates what it throws. The
  /// name of the operation is a literal.
  template <class Start>
  void run(const char* operation, Start&& start) {
    run(operation, kAnySize, std::forward<Start>(start));
  }
  /// `bytes`: what this rank brings, where all ranks have to bring as much. Read where a wait lasts, and only then.
  template <class Start>
  void run(const char* operation, std::int64_t bytes, Start&& start) {
    count_operation();
    guard(operation, [&](auto begin) {
      if (auto work = start()) wait(*work, operation, bytes, begin);
    });
  }
  /// The same for what goes on between two ranks.
  template <class Start>
  void run_between_two(const char* operation, Start&& start) {
    guard(operation, [&](auto) {
      if (auto work = start()) work->wait();
    });
  }
  /// From now on the end of each backward pass waits here for the all-reduces that were started in it, before the
  /// Reducer waits inside LibTorch: so a rank that does not come is noticed and named. The backend is Gloo.
  void watch_all_reduces();
  bool watches_all_reduces() const { return watches_; }
  /// Cannot be used from now on; whoever waits in it, here or on another rank, is told.
  void abandon(const std::string& why);
  /// Remembers the failure and throws it as TimeoutError or CollectiveError.
  [[noreturn]] void fail(const char* operation, const std::exception& error,
                         std::chrono::steady_clock::time_point begin);

 private:
  template <class Body>
  void guard(const char* operation, Body&& body) {
    auto begin = std::chrono::steady_clock::now();
    auto& activity = Activity::of_process();
    activity.begin_operation(operation);
    try {
      body(begin);
    } catch (const std::exception& error) {
      activity.end_operation();
      fail(operation, error, begin);
    }
    activity.end_operation();
  }
  void count_operation();
  void wait(c10d::Work& work, const char* operation, std::int64_t bytes, std::chrono::steady_clock::time_point begin);
  void note_started(c10::intrusive_ptr<c10d::Work> work);
  void wait_for_started();

  std::uint64_t faults_ = 0;  // of Gloo, before the operation that runs
  bool watches_ = false;
  std::vector<c10::intrusive_ptr<c10d::Work>> started_;  // in the backward pass that runs; nobody waits for it yet
  std::int64_t backward_pass_ = -1;                      // autograd's number of that pass
};

}  // namespace fabric::collectives

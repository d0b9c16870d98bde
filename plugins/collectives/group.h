#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <fabric/base/error.h>

#include "plugins/collectives/health.h"
#include "plugins/collectives/identity.h"
#include "plugins/collectives/transport.h"

namespace fabric::collectives {

/// What the copies of a ProcessGroup share: who its ranks are, what carries their tensors, and whether it still works.
class Group {
 public:
  Identity id;
  Transport transport;
  Health health;
  std::vector<at::Tensor> one;  // argument lists of one tensor, kept so that a call allocates none

  Group() = default;
  ~Group() { close(); }
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;
  void close() noexcept;
  /// Calls `start`, waits for the work that it returns and translates what it throws.
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

}  // namespace fabric::collectives

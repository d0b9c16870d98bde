#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <thread>

#include "plugins/collectives/communicator/communicator.h"

namespace fabric::collectives {

/// All-reduces in a thread beside backward: over a communicator of their own, one after another. Which ones go there
/// depends on their size alone, so every rank sends the same ones, in the same order.
class Overlap {
 public:
  using Job = std::function<void(Communicator&)>;

  explicit Overlap(std::unique_ptr<Communicator> communicator);
  /// Waits for no peer: a thread whose job does is left to itself.
  ~Overlap();
  Overlap(const Overlap&) = delete;
  Overlap& operator=(const Overlap&) = delete;
  void add(Job job);
  void set_timeout(std::chrono::milliseconds timeout);

 private:
  struct Shared;
  std::shared_ptr<Shared> shared_;
  std::thread thread_;
};

}  // namespace fabric::collectives

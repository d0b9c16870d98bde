#pragma once

#include <chrono>
#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "plugins/collectives/identity.h"
#include "plugins/collectives/transport.h"

namespace fabric::collectives {

using LinesOfRanks = std::function<std::string(std::vector<std::string> known)>;

/// Whether a group can still be used, and what to say where it cannot.
class Health {
 public:
  bool closed() const { return closed_; }
  bool usable() const { return !closed_ && failure_.empty(); }
  void close() { closed_ = true; }
  /// Throws MisuseError after shutdown, CollectiveError after a failure.
  void require_usable(const char* operation) const;
  /// Called in a catch block: throws what was caught, LibTorch's failures translated to TimeoutError or CollectiveError
  /// that name who is missing. Later calls of require_usable repeat it, unless every rank knows of it and can go on.
  /// `all_ranks` makes text of what each rank was doing; it gets what is known of each, "" where nothing is.
  [[noreturn]] void fail(const Identity& id, Transport& transport, const char* operation, const std::exception& error,
                         std::chrono::steady_clock::time_point begin, const LinesOfRanks& all_ranks);
  /// As after a failure.
  void abandon(const std::string& why) {
    if (failure_.empty()) failure_ = why;
  }

 private:
  bool closed_ = false;
  std::string failure_;
};

}  // namespace fabric::collectives

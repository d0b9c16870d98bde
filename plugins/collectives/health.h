#pragma once

#include <chrono>
#include <exception>
#include <string>

#include "plugins/collectives/identity.h"
#include "plugins/collectives/transport.h"

namespace fabric::collectives {

/// Whether a group can still be used, and what to say where it cannot.
class Health {
 public:
  bool closed() const { return closed_; }
  void close() { closed_ = true; }
  /// Throws MisuseError after shutdown, CollectiveError after a failure.
  void require_usable(const char* operation) const;
  /// Called in a catch block: throws what was caught, LibTorch's failures translated to TimeoutError or CollectiveError
  /// that name who is missing. Later calls of require_usable repeat it, unless every rank knows of it and can go on.
  [[noreturn]] void fail(const Identity& id, Transport& transport, const char* operation, const std::exception& error,
                         std::chrono::steady_clock::time_point begin);

 private:
  bool closed_ = false;
  std::string failure_;
};

}  // namespace fabric::collectives

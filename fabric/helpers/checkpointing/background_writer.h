#pragma once

#include <functional>
#include <future>

#include <fabric/export.h>

namespace fabric {

/// Runs one piece of work at a time in a thread of its own. Driven by one thread.
class FABRIC_API BackgroundWriter {
 public:
  BackgroundWriter() = default;
  BackgroundWriter(const BackgroundWriter&) = delete;
  BackgroundWriter& operator=(const BackgroundWriter&) = delete;
  /// Waits; logs a failure that nobody asked for.
  ~BackgroundWriter();
  /// Throws MisuseError while something is in flight: call `wait` first.
  void start(std::function<void()> work);
  /// Started, and not waited for yet.
  bool in_flight() const noexcept { return work_.valid(); }
  /// In flight, and `wait` would return at once.
  bool ended() const;
  /// Throws what the work threw. Does nothing when nothing is in flight.
  void wait();

 private:
  std::future<void> work_;
};

}  // namespace fabric

#pragma once

#include <functional>
#include <utility>

namespace fabric {

/// Runs a function when it goes out of scope, exceptions included. Movable; an empty one does nothing.
class [[nodiscard]] Scope {
 public:
  Scope() = default;
  explicit Scope(std::function<void()> leave) : leave_(std::move(leave)) {}
  Scope(Scope&& other) noexcept : leave_(std::exchange(other.leave_, nullptr)) {}
  Scope& operator=(Scope&& other) noexcept {
    close();
    leave_ = std::exchange(other.leave_, nullptr);
    return *this;
  }
  ~Scope() { close(); }
  /// Leaves now instead of at the end of the block.
  void close() noexcept {
    if (auto leave = std::exchange(leave_, nullptr)) leave();
  }

 private:
  std::function<void()> leave_;
};

}  // namespace fabric

#pragma once

#include <cstddef>

namespace sim {

/// Memory that is mapped twice: the host's view, whose addresses tensors hold and which may be protected, and the
/// kernels' view, which never is. So nothing is opened and closed around a kernel, and its other threads may work, too.
class Arena {
 public:
  /// After a fork, not before: both processes would share the memory.
  void map(int protection_of_host_view);
  bool holds_host(const void* address) const { return address >= host_ && address < host_ + kSize; }
  bool holds_kernel(const void* address) const { return address >= kernel_ && address < kernel_ + kSize; }
  std::size_t offset(const void* host_address) const {
    return static_cast<std::size_t>(static_cast<const char*>(host_address) - host_);
  }
  char* kernel_view(const void* host_address) const { return kernel_ + offset(host_address); }
  char* host_view(const void* kernel_address) const {
    return host_ + (static_cast<const char*>(kernel_address) - kernel_);
  }
  /// Never used before; null when the arena is full.
  char* take(std::size_t bytes);
  /// Of the host's view, from `begin` to `end`, in whole pages.
  void protect(std::size_t begin, std::size_t end, int protection) const;
  /// Gives the memory behind these bytes back to the system; they read as zeros afterwards.
  void discard(char* kernel_address, std::size_t bytes) const;
  static std::size_t page();

 private:
  static constexpr std::size_t kSize = std::size_t{1} << 35;
  int file_ = -1;
  char* host_ = nullptr;
  char* kernel_ = nullptr;
  std::size_t used_ = 0;
};

}  // namespace sim

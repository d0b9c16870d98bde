#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <utility>

#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>

namespace fabric::collectives {

/// Memory for tensors in a part of a shared segment that this rank alone hands out, so that the other ranks find a
/// tensor by where it lies. Pages are there once they are written to. Tensors are freed like any other, in any thread,
/// and keep the segment; who needs more than there is gets ordinary memory.
///
/// Invariants: free blocks neither touch nor overlap one another; beyond `frontier_` nothing was handed out since it
/// was there; memory that is handed out has one owner. Of free memory no more than what is in use keeps its pages, and
/// 64 MiB in any case. In a copy of the process (fork) nothing is handed out or taken back: the memory is the
/// original's.
class Arena : public c10::Allocator, public std::enable_shared_from_this<Arena> {
 public:
  /// `begin`: `bytes` of memory that `owner` keeps. Zero bytes: all memory is ordinary.
  static std::shared_ptr<Arena> make(std::shared_ptr<void> owner, char* begin, std::size_t bytes);

  at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options);
  /// Hands out nothing more and uses nothing again: after a failure in which another rank may still write here.
  void retire() { retired_ = true; }
  bool is_retired() const { return retired_; }

  c10::DataPtr allocate(std::size_t bytes) override;
  void copy_data(void* to, const void* from, std::size_t bytes) const override;

  struct Usage {
    std::size_t used = 0;  // bytes that are handed out
    std::size_t kept = 0;  // free bytes whose pages may be there
    std::size_t most = 0;  // what can be handed out in all
  };
  Usage usage() const;

 private:
  struct Free {
    std::size_t bytes = 0, kept = 0;
  };
  struct Block;
  Arena(std::shared_ptr<void> owner, char* begin, std::size_t bytes);
  bool take(std::size_t bytes, std::size_t& offset);
  void give_back(std::size_t offset, std::size_t bytes);
  void insert(std::size_t offset, Free block);
  std::map<std::size_t, Free>::iterator erase(std::map<std::size_t, Free>::iterator block);
  void drop_pages(std::size_t offset, Free& block);

  std::shared_ptr<void> owner_;
  char* begin_;
  std::size_t bytes_;
  pid_t process_;
  std::atomic<bool> retired_{false};
  mutable std::mutex mutex_;
  std::map<std::size_t, Free> free_;                       // by offset
  std::set<std::pair<std::size_t, std::size_t>> by_size_;  // bytes, offset
  std::size_t frontier_ = 0, used_ = 0, kept_ = 0;
};

}  // namespace fabric::collectives

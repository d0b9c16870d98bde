#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "launcher/os/descriptor.h"

namespace fabric::collectives {

/// Memory that the ranks of one machine share. It has no name: the rank that made it holds a descriptor, the others
/// open that through /proc, which the system allows to the same user alone. So nothing is left when all have ended, and
/// the size of /dev/shm does not count. Each rank marks its place in it for as long as it lives. A part at the end may
/// be reserved: its pages come as they are written to.
class SharedSegment {
 public:
  /// New memory, all zero: `bytes` that are really there, and up to `reserve` behind them, less where the process may
  /// not have as many addresses. Throws UnavailableError when the system refuses.
  static std::unique_ptr<SharedSegment> make(std::size_t bytes, std::size_t reserve = 0);
  /// What another process made: `place` is its place(). Throws UnavailableError when it cannot be opened from here,
  /// as in another container.
  static std::unique_ptr<SharedSegment> open(const std::string& place);
  ~SharedSegment();
  SharedSegment(const SharedSegment&) = delete;
  SharedSegment& operator=(const SharedSegment&) = delete;

  /// Where the others find what this process made, with a number that tells this memory from all other.
  std::string place() const;
  char* data() const { return data_; }
  /// With what is reserved.
  std::size_t size() const { return bytes_; }
  /// Marks this rank's place until the process ends or the segment is freed, whichever comes first.
  void live_as(int rank);
  /// Whether no process lives as this rank. The rank has to have been there.
  bool is_gone(int rank) const;

 private:
  SharedSegment(Descriptor file, char* data, std::size_t bytes);
  Descriptor file_;
  std::size_t bytes_;
  char* data_ = nullptr;
};

}  // namespace fabric::collectives

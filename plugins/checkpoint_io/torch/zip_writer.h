#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include <fabric/base/atomic_file_internal.h>

namespace fabric::checkpoint {

/// Writes a zip archive without compression, each entry's data at a multiple of 64 bytes, as PyTorch does.
class ZipWriter {
 public:
  /// Hands out an entry's bytes in pieces; called twice, since the checksum comes before the data.
  using Pieces = std::function<void(const std::function<void(const void*, std::size_t)>&)>;

  explicit ZipWriter(AtomicFile& file) : file_(file) {}
  void add(const std::string& name, std::string_view bytes);
  void add(const std::string& name, const Pieces& pieces);
  /// Writes the directory; the file is still to be committed.
  void finish();

 private:
  struct Entry {
    std::string name;
    std::uint32_t checksum;
    std::uint64_t size, offset;
  };
  AtomicFile& file_;
  std::vector<Entry> entries_;
};

}  // namespace fabric::checkpoint

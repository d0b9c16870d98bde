#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>

#include "plugins/checkpoint_io/mapped_file.h"

namespace fabric::checkpoint {

/// The entries of a zip archive that was written without compression, as PyTorch writes them. Throws CheckpointCorrupt
/// for damaged ones; every position is checked against the file before it is used. Bytes behind the archive's end are
/// passed over, as PyTorch does.
class ZipReader {
 public:
  struct Entry {
    std::size_t offset = 0;
    std::size_t size = 0;
    std::uint32_t checksum = 0;
    bool compressed = false;
  };
  explicit ZipReader(std::shared_ptr<MappedFile> file);

  const std::unordered_map<std::string, Entry>& entries() const { return entries_; }
  /// Null when there is none; throws for one that is compressed.
  const Entry* find(const std::string& name) const;
  /// Compares the checksums of all entries with their bytes. Zero is none: PyTorch can be told to leave them out.
  void verify() const;
  std::string_view bytes(const Entry& entry) const { return file_->text(entry.offset, entry.size); }
  const std::shared_ptr<MappedFile>& file() const { return file_; }

 private:
  struct Directory {
    std::uint64_t offset, size, count;
  };
  Directory find_directory() const;
  std::size_t find_end() const;
  void read_directory(const Directory& directory);
  std::size_t data_offset(const std::string& name, std::uint64_t header) const;

  std::shared_ptr<MappedFile> file_;
  std::unordered_map<std::string, Entry> entries_;
};

}  // namespace fabric::checkpoint

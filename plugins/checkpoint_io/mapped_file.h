#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <string_view>

namespace fabric::checkpoint {

/// A whole file in memory. The pages are private: writing to them never changes the file. Tensors that point into the
/// mapping hold it by its shared pointer.
class MappedFile {
 public:
  /// Throws CheckpointError naming path and reason. `stays_open`: for `pages`.
  static std::shared_ptr<MappedFile> open(const std::filesystem::path& path, bool stays_open = false);
  /// A stretch of `whole` as a file of its own, of the same pages; it must lie inside.
  static std::shared_ptr<MappedFile> part(std::shared_ptr<MappedFile> whole, std::size_t offset, std::size_t size);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::string_view text(std::size_t offset, std::size_t length) const {
    return {reinterpret_cast<const char*>(data_) + offset, length};
  }
  const std::filesystem::path& path() const { return path_; }
  /// Brings all pages in at once, which is cheaper than one page fault each, and turns an unreadable page into an error
  /// here instead of a signal later. False, and nothing is done, for a file that is only looked at.
  bool populate() const;
  /// A stretch in pages of its own, which outlive this object and are as private; null where there are none.
  std::shared_ptr<std::byte> pages(std::size_t offset, std::size_t length) const;
  /// Reads a stretch from the disk and nothing around it: a mapping alone reads megabytes ahead.
  void fetch(std::size_t offset, std::size_t length) const;
  /// From now on only what is asked for is read.
  void peek() { peeks_ = true; }
  /// Gives the pages back to the system, which brings them again when they are used. Only where nobody wrote to them.
  void release() const;

 private:
  MappedFile(std::filesystem::path path, std::byte* data, std::size_t size)
      : path_(std::move(path)), data_(data), size_(size) {}
  std::filesystem::path path_;
  std::byte* data_;
  std::size_t size_;
  bool peeks_ = false;
  int fd_ = -1;
  std::shared_ptr<MappedFile> whole_;  // whose pages these are; null: its own
};

}  // namespace fabric::checkpoint

#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string_view>
#include <vector>

namespace fabric::checkpoint {

/// Writes a file under a temporary name in the same folder; `commit` syncs it and moves it into place. Until then, and
/// when anything fails or the process is killed, a file that existed before stays as it is.
/// The temporary name is the same each time and is locked while in use, so that one left by a killed process is taken
/// over by the next save instead of piling up.
class AtomicFile {
 public:
  /// Makes parent folders. Throws CheckpointError naming path and reason, as all members do.
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, std::size_t size);
  void write(std::string_view text) { write(text.data(), text.size()); }
  /// Bytes written so far.
  std::uint64_t position() const { return position_; }
  void commit();

 private:
  bool claim(const std::filesystem::path& temporary);
  void write_through(const char* data, std::size_t size);
  void flush();
  [[noreturn]] void fail(const std::string& what, int error);

  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int fd_ = -1;
  std::uint64_t position_ = 0;
  std::vector<char> buffer_;  // gathers small pieces; large ones go to the kernel directly
};

}  // namespace fabric::checkpoint

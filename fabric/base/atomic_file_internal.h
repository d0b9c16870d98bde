#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <fabric/base/error.h>

namespace fabric {

/// Makes the error that a failed write is, of the class that the writer's caller promises.
using MakeError = std::exception_ptr (*)(const std::string& text);
template <class E>
std::exception_ptr as_error(const std::string& text) {
  return std::make_exception_ptr(E(text));
}

/// The one way to write a file as a whole. It goes under a temporary name in the same folder; `commit` syncs it and
/// moves it into place. Until then, and when anything fails or the process is killed, a file that existed before stays
/// as it is. A link stays, and the file that it names is replaced, which keeps its owner and its permissions.
/// The temporary name is the same each time, or has a number of its own where that one is taken, and is locked while in
/// use, so that files left by killed processes go with the next writer instead of piling up (on file systems without
/// locks they stay). What others have put under these names is not touched.
/// What is no regular file (/dev/null, a terminal, a pipe, /dev/stdout) is no name to be replaced: it is written in
/// place. A pipe's reader has half a minute for each piece. Disks, folders and sockets are refused.
class AtomicFile {
 public:
  /// Makes parent folders. All members throw what `make_error` makes of a text that names path and reason.
  explicit AtomicFile(std::filesystem::path path, MakeError make_error = as_error<Error>);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, std::size_t size);
  void write(std::string_view text) { write(text.data(), text.size()); }
  /// What `rewrite` needs: pipes and terminals keep nothing.
  bool can_rewrite() const { return !in_place_; }
  /// Replaces bytes that were written before.
  void rewrite(std::uint64_t offset, std::string_view text);
  /// Bytes written so far.
  std::uint64_t position() const { return position_; }
  /// Once it returns, the new file outlives a power failure. It also throws, and says so, when the new file is in place
  /// already but its folder cannot be synced.
  void commit();

 private:
  void claim_name();
  bool claim(const std::filesystem::path& temporary);
  void open_in_place();
  void wait_for_reader() const;
  void keep_owner() const;
  void write_through(const char* data, std::size_t size);
  void flush();
  [[noreturn]] void fail(const std::string& why) const;
  [[noreturn]] void fail(const std::string& what, int error) const;

  std::filesystem::path path_;
  MakeError make_error_;
  std::filesystem::path temporary_;
  int fd_ = -1;
  bool in_place_ = false;  // then there is no temporary file
  std::uint64_t position_ = 0;
  std::vector<char> buffer_;  // gathers small pieces; large ones go to the kernel directly
};

/// A whole file at once by way of AtomicFile.
void write_whole_file(const std::filesystem::path& path, std::string_view text, MakeError make_error = as_error<Error>);

/// Why `path` cannot be used: "s3://bucket/run" names a place that nothing here writes to, where the system would make
/// a folder "s3:". Empty when it is a path of this machine.
std::string why_not_local(const std::filesystem::path& path);

/// The folder that `path` lies in; "." for a bare name.
std::filesystem::path folder_of(const std::filesystem::path& path);

/// Makes `folder` and what is missing above it, each synced into the folder that holds it: a synced file in a folder
/// whose own name was never synced is lost with it.
[[nodiscard]] std::error_code make_folders(const std::filesystem::path& folder);

/// Waits until the bytes of a file, or the names in a folder, are on the disk. No error where that cannot be asked for:
/// a folder that one may write but not read, a file system that knows no sync.
[[nodiscard]] std::error_code sync_path(const std::filesystem::path& path);

}  // namespace fabric

#include "plugins/checkpoint_io/atomic_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include <fabric/error.h>

namespace fabric::checkpoint {
namespace {

constexpr std::size_t kBuffer = std::size_t{1} << 20;
constexpr std::size_t kLargest = std::size_t{1} << 30;  // Linux moves at most 2 GiB in one call
constexpr int kLinks = 40;

// Renaming onto a link would replace the link, not the file that it names.
std::filesystem::path through_links(std::filesystem::path path) {
  std::error_code ignored;
  for (int i = 0; i < kLinks && std::filesystem::is_symlink(path, ignored); ++i)
    path = path.parent_path() / std::filesystem::read_symlink(path, ignored);
  return path;
}

std::filesystem::path folder_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

}  // namespace

AtomicFile::AtomicFile(std::filesystem::path path) : path_(through_links(std::move(path))) {
  if (!path_.has_filename()) throw CheckpointError("cannot save to '" + path_.string() + "': it names no file");
  std::error_code error;
  if (std::filesystem::is_directory(path_, error))
    throw CheckpointError("cannot save to '" + path_.string() + "': it is a folder; give the name of a file in it");
  if (std::filesystem::exists(path_, error) && !std::filesystem::is_regular_file(path_, error))  // /dev/null, say
    throw CheckpointError("cannot save to '" + path_.string() + "': it exists and is no regular file");
  std::filesystem::create_directories(folder_of(path_), error);
  if (error) fail("cannot make its folder", error.value());

  buffer_.reserve(kBuffer);
  const std::string stem = "." + path_.filename().string() + ".partial";
  if (!claim(folder_of(path_) / stem) && !claim(folder_of(path_) / (stem + "-" + std::to_string(getpid()))))
    throw CheckpointError("cannot save to '" + path_.string() +
                          "': other savers of the same file hold all its temporary names");
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  unlink(temporary_.c_str());  // before closing, as closing gives up the lock
  close(fd_);
}

// True when the name is now ours. A file found under it belongs to a saver at work (locked) or to a dead one.
bool AtomicFile::claim(const std::filesystem::path& temporary) {
  temporary_ = temporary;
  for (int attempt = 0; attempt < kLinks; ++attempt) {
    int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0) fail("cannot make the temporary file '" + temporary.string() + "'", errno);
    bool locked = flock(fd, LOCK_EX | LOCK_NB) == 0;
    bool taken = !locked && errno == EWOULDBLOCK;
    struct stat ours = {};
    struct stat named = {};
    bool same = fstat(fd, &ours) == 0 && stat(temporary.c_str(), &named) == 0 && ours.st_ino == named.st_ino &&
                ours.st_dev == named.st_dev;
    if (!taken && same && ftruncate(fd, 0) == 0) {  // file systems without locks: the check of the name is all there is
      fd_ = fd;
      return true;
    }
    close(fd);
    if (taken) return false;
  }
  return false;
}

void AtomicFile::write(const void* data, std::size_t size) {
  position_ += size;
  const char* bytes = static_cast<const char*>(data);
  const bool large = size >= kBuffer / 2;
  if (large || buffer_.size() + size > kBuffer) flush();  // what came before goes first
  if (large)
    write_through(bytes, size);
  else
    buffer_.insert(buffer_.end(), bytes, bytes + size);
}

void AtomicFile::flush() {
  write_through(buffer_.data(), buffer_.size());
  buffer_.clear();
}

void AtomicFile::write_through(const char* data, std::size_t size) {
  while (size > 0) {
    ssize_t done = ::write(fd_, data, std::min(size, kLargest));
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) fail("cannot write '" + temporary_.string() + "'", errno);
    data += done;
    size -= static_cast<std::size_t>(done);
  }
}

void AtomicFile::commit() {
  flush();
  if (fsync(fd_) != 0) fail("cannot sync '" + temporary_.string() + "'", errno);
  if (rename(temporary_.c_str(), path_.c_str()) != 0)
    fail("cannot move '" + temporary_.string() + "' into place", errno);
  close(std::exchange(fd_, -1));
  int folder = open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return;  // a folder one may write but not list
  bool synced = fsync(folder) == 0 || errno == EINVAL || errno == EROFS;
  int error = errno;
  close(folder);
  if (!synced) fail("the file is in place, but its folder cannot be synced", error);
}

void AtomicFile::fail(const std::string& what, int error) {
  throw CheckpointError("cannot save to '" + path_.string() + "': " + what + ": " + std::strerror(error));
}

}  // namespace fabric::checkpoint

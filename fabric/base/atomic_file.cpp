#include <fabric/base/atomic_file_internal.h>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace fabric {
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

}  // namespace

std::filesystem::path folder_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

std::error_code make_folders(const std::filesystem::path& folder) {
  std::error_code error;
  std::vector<std::filesystem::path> missing;
  for (auto at = folder; !at.empty() && !std::filesystem::exists(at, error) && !error; at = at.parent_path())
    missing.push_back(at);
  std::filesystem::create_directories(folder, error);
  for (std::size_t i = 0; i < missing.size() && !error; ++i) error = sync_path(folder_of(missing[i]));
  return error;
}

std::error_code sync_path(const std::filesystem::path& path) {
  int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return {};
  std::error_code error;
  if (fsync(fd) != 0 && errno != EINVAL && errno != EROFS) error.assign(errno, std::generic_category());
  close(fd);
  return error;
}

void write_whole_file(const std::filesystem::path& path, std::string_view text, MakeError make_error) {
  AtomicFile file(path, make_error);
  file.write(text);
  file.commit();
}

AtomicFile::AtomicFile(std::filesystem::path path, MakeError make_error)
    : path_(through_links(std::move(path))), make_error_(make_error) {
  if (!path_.has_filename()) fail("it names no file");
  std::error_code error;
  if (std::filesystem::is_directory(path_, error)) fail("it is a folder; give the name of a file in it");
  if (std::filesystem::exists(path_, error) && !std::filesystem::is_regular_file(path_, error))  // /dev/null, say
    fail("it exists and is no regular file");
  if (auto unmade = make_folders(folder_of(path_))) fail("its folder cannot be made", unmade.value());

  buffer_.reserve(kBuffer);
  const std::string stem = "." + path_.filename().string() + ".partial";
  if (!claim(folder_of(path_) / stem) && !claim(folder_of(path_) / (stem + "-" + std::to_string(getpid()))))
    fail("other writers of the same file hold all its temporary names");
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  unlink(temporary_.c_str());  // before closing, as closing gives up the lock
  close(fd_);
}

// True when the name is now ours. A file found under it belongs to a writer at work (locked) or to a dead one.
bool AtomicFile::claim(const std::filesystem::path& temporary) {
  temporary_ = temporary;
  for (int attempt = 0; attempt < kLinks; ++attempt) {
    int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    // Left over by another user: another name will do.
    if (int reason = errno; fd < 0) {
      struct stat left_over = {};
      if ((reason == EACCES || reason == EPERM) && lstat(temporary.c_str(), &left_over) == 0) return false;
      fail("its temporary file '" + temporary.string() + "' cannot be made", reason);
    }
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
    if (done < 0) fail("the disk does not take '" + temporary_.string() + "'", errno);
    data += done;
    size -= static_cast<std::size_t>(done);
  }
}

void AtomicFile::commit() {
  flush();
  if (fsync(fd_) != 0) fail("'" + temporary_.string() + "' cannot be synced", errno);
  if (rename(temporary_.c_str(), path_.c_str()) != 0)
    fail("'" + temporary_.string() + "' cannot be moved into place", errno);
  close(std::exchange(fd_, -1));
  if (auto error = sync_path(folder_of(path_)))
    std::rethrow_exception(make_error_("the new file '" + path_.string() + "' is in place, but its folder cannot be " +
                                       "synced, so that a power failure may undo it: " + error.message()));
}

void AtomicFile::fail(const std::string& why) const {
  std::rethrow_exception(make_error_("the file '" + path_.string() + "' cannot be written: " + why));
}

void AtomicFile::fail(const std::string& what, int error) const { fail(what + ": " + std::strerror(error)); }

}  // namespace fabric

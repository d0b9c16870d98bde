#include <fabric/base/atomic_file_internal.h>

#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <random>
#include <utility>

#include <fabric/base/no_sigpipe_internal.h>

namespace fabric {
namespace {

constexpr std::size_t kBuffer = std::size_t{1} << 20;
constexpr off_t kSendOff = off_t{8} << 20;
constexpr std::size_t kLargest = std::size_t{1} << 30;  // Linux moves at most 2 GiB in one call
constexpr int kLinks = 40;
constexpr int kReaderSeconds = 30;

// Renaming onto a link would replace the link, not the file that it names.
std::filesystem::path through_links(std::filesystem::path path) {
  std::error_code ignored;
  for (int i = 0; i < kLinks && std::filesystem::is_symlink(path, ignored); ++i)
    path = path.parent_path() / std::filesystem::read_symlink(path, ignored);
  return path;
}

// The disk begins with each 8 MiB that are there, instead of at the end with all: the next ones are copied meanwhile.
// The sync at the end still waits for everything, and tells what went wrong.
void send_off(int fd, off_t just_written) {
  const off_t end = lseek(fd, 0, SEEK_CUR);
  const off_t whole = end / kSendOff, before = (end - just_written) / kSendOff;
  if (end < 0 || whole == before) return;
  [[maybe_unused]] const int ignored =
      sync_file_range(fd, before * kSendOff, (whole - before) * kSendOff, SYNC_FILE_RANGE_WRITE);
}

bool is_plain(const struct stat& what) { return S_ISREG(what.st_mode) && what.st_nlink == 1; }

bool is_name_of(const std::filesystem::path& path, int fd) {
  struct stat ours = {}, named = {};
  return fstat(fd, &ours) == 0 && lstat(path.c_str(), &named) == 0 && ours.st_ino == named.st_ino &&
         ours.st_dev == named.st_dev;
}

// Removes what a dead writer left, which nobody has locked. Anything but a plain file of one name (a pipe, a link, a
// second name of some other file) was put there by somebody else: it is neither opened for writing, which a pipe would
// hold up, nor touched. Nor is a file where the file system knows no locks: its writer may be alive. True when the name
// is free.
bool remove_left_over(const std::filesystem::path& temporary) {
  struct stat what = {};
  if (lstat(temporary.c_str(), &what) != 0) return errno == ENOENT;
  if (!is_plain(what)) return false;
  int fd = open(temporary.c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (fd < 0) return errno == ENOENT;
  bool dead = fstat(fd, &what) == 0 && is_plain(what) && flock(fd, LOCK_EX | LOCK_NB) == 0;
  bool removed = dead && (!is_name_of(temporary, fd) || unlink(temporary.c_str()) == 0);
  close(fd);
  return removed;
}

// Those of writers that found the usual name taken, and died.
void remove_left_overs(const std::filesystem::path& folder, const std::string& stem) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error))
    if (entry.path().filename().string().starts_with(stem + "-")) remove_left_over(entry.path());
}

// /dev/stdout and its like name a file that is open already. Whoever opened it goes on writing into it, so that a new
// file under its name would part the two.
bool names_open_file(std::filesystem::path path) {
  std::error_code error;
  for (int i = 0; i < kLinks && std::filesystem::is_symlink(path, error); ++i) {
    auto folder = std::filesystem::canonical(folder_of(path), error);
    if (!error && *std::next(folder.begin(), folder != "/") == "proc") return true;
    path = path.parent_path() / std::filesystem::read_symlink(path, error);
  }
  return false;
}

}  // namespace

std::string why_not_local(const std::filesystem::path& path) {
  const std::string text = path.string();
  const auto end = text.find("://");
  auto is_letter = [](unsigned char c) { return std::isalnum(c) || c == '+' || c == '-' || c == '.'; };
  if (end == text.npos || end < 2 ||
      !std::all_of(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(end), is_letter))
    return {};
  const std::string scheme = text.substr(0, end);
  if (scheme == "file") return "'" + text + "' is a URL; write the path alone, without file://";
  return "'" + text + "' is no path of this machine, and " + scheme +
         ":// is not served; mount the storage, or write to a local folder and copy from there";
}

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
  std::error_code error;
  // One that may be written but not read cannot be asked; too many open files, say, is no reason to call it synced.
  if (fd < 0 && errno != EACCES && errno != EPERM) error.assign(errno, std::generic_category());
  if (fd < 0) return error;
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
    : path_(std::move(path)), make_error_(make_error) {
  if (!path_.has_filename()) fail("it names no file");
  if (auto why = why_not_local(path_); !why.empty()) fail(why);
  buffer_.reserve(kBuffer);
  std::error_code error;
  // Asked of the kernel, for which the links of /proc lead further than their text.
  const auto found = std::filesystem::status(path_, error);
  if (std::filesystem::is_directory(found)) fail("it is a folder; give the name of a file in it");
  if (std::filesystem::exists(found) && (!std::filesystem::is_regular_file(found) || names_open_file(path_))) {
    open_in_place();
    return;
  }
  path_ = through_links(path_);
  if (auto unmade = make_folders(folder_of(path_))) fail("its folder cannot be made", unmade.value());

  claim_name();
}

void AtomicFile::claim_name() {
  const auto folder = folder_of(path_);
  const std::string stem = '.' + path_.filename().string() + ".partial";
  remove_left_overs(folder, stem);
  if (claim(folder / stem)) return;
  std::random_device random;
  for (int attempt = 0; attempt < kLinks; ++attempt)
    if (claim(folder / (stem + "-" + std::to_string(getpid()) + "-" + std::to_string(random())))) return;
  fail("other writers of the same file hold all its temporary names");
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  if (!in_place_) unlink(temporary_.c_str());  // before closing, as closing gives up the lock
  close(fd_);
}

void AtomicFile::open_in_place() {
  struct stat what = {};
  if (stat(path_.c_str(), &what) != 0) fail("it is gone", errno);
  if (S_ISBLK(what.st_mode)) fail("it is a disk, whose content would be overwritten");
  if (S_ISSOCK(what.st_mode)) fail("it is a socket; give a file, a pipe or a device");
  // Not to wait until somebody opens a pipe's other end. A terminal must not become ours.
  fd_ = open(path_.c_str(), O_WRONLY | O_APPEND | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (fd_ < 0 && errno == ENXIO && S_ISFIFO(what.st_mode)) fail("it is a pipe that nobody reads");
  if (fd_ < 0) fail("it cannot be opened", errno);
  in_place_ = true;
}

void AtomicFile::wait_for_reader() const {
  pollfd writable{fd_, POLLOUT, 0};
  int ready = poll(&writable, 1, kReaderSeconds * 1000);
  if (ready == 0) fail("whoever reads it took nothing for " + std::to_string(kReaderSeconds) + " s");
  if (ready < 0 && errno != EINTR) fail("it cannot be waited for", errno);
}

// True when a new file under this name is ours. What is found there belongs to a writer at work, to a dead one, whose
// file goes, or to somebody else (remove_left_over).
bool AtomicFile::claim(const std::filesystem::path& temporary) {
  temporary_ = temporary;
  for (int attempt = 0; attempt < kLinks; ++attempt) {
    int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd >= 0) {
      // Until the lock was ours, another writer may have taken the file for a dead one's.
      bool lost = flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
      if (!lost && is_name_of(temporary, fd)) {
        fd_ = fd;
        return true;
      }
      close(fd);
    } else if (errno != EEXIST) {
      fail("its temporary file '" + temporary.string() + "' cannot be made", errno);
    } else if (!remove_left_over(temporary)) {
      return false;
    }
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
    ssize_t done = 0;
    if (in_place_) {
      NoSigpipe guard;
      done = ::write(fd_, data, std::min(size, kLargest));
    } else {
      done = ::write(fd_, data, std::min(size, kLargest));
    }
    if (done < 0 && errno == EINTR) continue;
    if (done < 0 && errno == EAGAIN && in_place_) {
      wait_for_reader();
      continue;
    }
    if (done < 0 && in_place_) fail("it does not take what is written", errno);
    if (done < 0) fail("the disk does not take '" + temporary_.string() + "'", errno);
    data += done;
    size -= static_cast<std::size_t>(done);
    if (!in_place_) send_off(fd_, done);
  }
}

void AtomicFile::rewrite(std::uint64_t offset, std::string_view text) {
  flush();
  while (!text.empty()) {
    ssize_t done = ::pwrite(fd_, text.data(), std::min(text.size(), kLargest), static_cast<off_t>(offset));
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) fail("the disk does not take '" + temporary_.string() + "'", errno);
    offset += static_cast<std::uint64_t>(done);
    text.remove_prefix(static_cast<std::size_t>(done));
  }
}

void AtomicFile::commit() {
  flush();
  if (in_place_) {
    // Pipes and terminals know no sync.
    if (fsync(fd_) != 0 && errno != EINVAL && errno != EROFS) fail("it cannot be synced", errno);
    close(std::exchange(fd_, -1));
    return;
  }
  keep_owner();
  if (fsync(fd_) != 0) fail("'" + temporary_.string() + "' cannot be synced", errno);
  if (rename(temporary_.c_str(), path_.c_str()) != 0)
    fail("'" + temporary_.string() + "' cannot be moved into place", errno);
  close(std::exchange(fd_, -1));
  if (auto error = sync_path(folder_of(path_)))
    std::rethrow_exception(make_error_("the new file '" + path_.string() + "' is in place, but its folder cannot be " +
                                       "synced, so that a power failure may undo it: " + error.message()));
}

// Of the file that is replaced, as far as we may: a report that root writes stays its reader's.
void AtomicFile::keep_owner() const {
  struct stat before = {};
  if (stat(path_.c_str(), &before) != 0) return;
  [[maybe_unused]] int ignored = fchown(fd_, before.st_uid, before.st_gid);
  ignored = fchmod(fd_, before.st_mode & 0777);
}

void AtomicFile::fail(const std::string& why) const {
  std::rethrow_exception(make_error_("the file '" + path_.string() + "' cannot be written: " + why));
}

void AtomicFile::fail(const std::string& what, int error) const { fail(what + ": " + std::strerror(error)); }

}  // namespace fabric

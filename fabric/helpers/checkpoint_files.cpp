#include <fabric/helpers/checkpoint_files.h>

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include <fabric/error.h>

namespace fabric {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const std::string& what, const fs::path& path, const std::string& why) {
  throw CheckpointError("cannot " + what + " '" + path.string() + "': " + why);
}

fs::path folder_of(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : fs::path("."); }

// Of no use to anybody until it is renamed; the next call takes it over when a kill left it.
fs::path temporary_for(const fs::path& path) {
  return folder_of(path) / ("." + path.filename().string() + ".partial-link");
}

void sync_path(const fs::path& path, int flags) {
  int fd = open(path.c_str(), flags | O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;  // a folder one may write but not list
  bool synced = fsync(fd) == 0 || errno == EINVAL || errno == EROFS;
  int error = errno;
  close(fd);
  if (!synced) fail("sync", path, std::strerror(error));
}

void make_folder(const fs::path& path) {
  std::error_code error;
  fs::create_directories(folder_of(path), error);
  if (error) fail("make the folder of", path, error.message());
}

void move_into_place(const fs::path& temporary, const fs::path& path) {
  std::error_code error, ignored;
  if (fs::is_directory(fs::symlink_status(path, ignored))) fs::remove_all(path, ignored);  // cannot be renamed over
  fs::rename(temporary, path, error);
  // Two names of one file stay as they are when one is renamed to the other.
  fs::remove_all(temporary, ignored);
  if (error) fail("move a new file to", path, error.message());
  sync_path(folder_of(path), O_DIRECTORY);
}

void copy_bytes(const fs::path& file, const fs::path& temporary, const fs::path& name) {
  std::error_code error;
  fs::copy(file, temporary, fs::copy_options::recursive | fs::copy_options::overwrite_existing, error);
  if (error) {
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
    fail("copy '" + file.string() + "' to", name, error.message());
  }
  if (fs::is_regular_file(temporary)) sync_path(temporary, 0);
}

}  // namespace

bool checkpoint_exists(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(fs::symlink_status(path, ignored));
}

fs::path first_free_path(const std::function<fs::path(int)>& name,
                         const std::function<bool(const fs::path&)>& may_replace) {
  for (int version = 0;; ++version) {
    fs::path path = name(version);
    if (may_replace(path) || !checkpoint_exists(path)) return path;
  }
}

void copy_checkpoint(const fs::path& file, const fs::path& name) {
  if (file == name) return;
  make_folder(name);
  fs::path temporary = temporary_for(name);
  std::error_code error;
  fs::remove_all(temporary, error);
  fs::create_hard_link(file, temporary, error);
  if (error) copy_bytes(file, temporary, name);
  move_into_place(temporary, name);
}

void link_checkpoint(const fs::path& file, const fs::path& name) {
  if (file == name) return;
  make_folder(name);
  fs::path temporary = temporary_for(name);
  std::error_code error;
  fs::remove_all(temporary, error);
  fs::create_symlink(file.lexically_relative(folder_of(name)), temporary, error);
  if (error) return copy_checkpoint(file, name);
  move_into_place(temporary, name);
}

void remove_checkpoint(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) fail("remove the checkpoint", path, error.message());
}

void remove_leftovers(const fs::path& folder, const std::string& extension) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with('.') || name.find(extension + ".partial") == name.npos) continue;
    int fd = open(entry.path().c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) continue;
    if (flock(fd, LOCK_EX | LOCK_NB) == 0) unlink(entry.path().c_str());
    close(fd);
  }
}

void write_text_file(const fs::path& path, const std::string& text) {
  make_folder(path);
  fs::path temporary = folder_of(path) / ("." + path.filename().string() + ".partial");
  int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) fail("write", path, std::strerror(errno));
  bool written = write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()) && fsync(fd) == 0;
  int error = errno;
  close(fd);
  if (!written) {
    unlink(temporary.c_str());
    fail("write", path, std::strerror(error));
  }
  move_into_place(temporary, path);
}

}  // namespace fabric

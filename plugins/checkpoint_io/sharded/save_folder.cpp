// The folder that a save works in. The file `lock` in it is locked for as long as the save lasts: a folder whose lock
// is free was left by a kill and goes.
#include "plugins/checkpoint_io/sharded/save_folder.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include <fabric/base/atomic_file_internal.h>
#include <fabric/base/error.h>

#include "plugins/checkpoint_io/sharded/sharded_index.h"
#include "plugins/checkpoint_io/sharded/sharded_io.h"

namespace fabric::checkpoint {
namespace {

namespace fs = std::filesystem;

fs::path partial_folder(const fs::path& path) {
  return folder_of(path) / ("." + path.filename().string() + ".partial");
}

// A link stays, and what it names is replaced.
fs::path through_link(const fs::path& path) {
  std::error_code error;
  if (!fs::is_symlink(path, error)) return path;
  auto target = fs::weakly_canonical(path, error);
  return error ? path : target;
}

// What a folder holds that no save put there, or nothing: it would go with the checkpoint that is replaced. `.nfs…` are
// files that somebody still reads on a network file system; they go by themselves.
std::string foreign_entry(const fs::path& folder) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    std::string name = entry.path().filename().string();
    const bool is_shard = name.starts_with("shard-") && name.ends_with(".safetensors");
    if (!is_shard && name != kIndexName && name != "lock" && !name.starts_with(".nfs")) return name;
  }
  return {};
}

// What a name may lead to that a checkpoint is to have: nothing, a file, or a checkpoint and nothing else.
void require_replaceable(const fs::path& path) {
  if (!path.has_filename()) shard_failure(path, "it names no folder");
  std::error_code error;
  auto found = fs::status(path, error);
  if (!fs::exists(found) || fs::is_regular_file(found)) return;
  if (!fs::is_directory(found)) shard_failure(path, "it exists and is neither a file nor a folder");
  if (const auto other = foreign_entry(path); !other.empty())
    shard_failure(path, "it is a folder that holds something other than a checkpoint, '" + other +
                            "', which would be lost; move that elsewhere, or save under another name");
}

// The folder is ours once the lock in it is, and still has its name: until then another save may take the folder for
// a killed one's.
int claim(const fs::path& place, const fs::path& path) {
  const fs::path lock = place / "lock";
  int fd = open(lock.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (fd < 0 && errno != EEXIST && errno != ENOENT)
    shard_failure(path, std::string("its lock cannot be made: ") + std::strerror(errno));
  struct stat ours = {}, named = {};
  const bool is_ours = fd >= 0 && (flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) &&
                       fstat(fd, &ours) == 0 && lstat(lock.c_str(), &named) == 0 && ours.st_ino == named.st_ino &&
                       ours.st_dev == named.st_dev;
  if (is_ours) return fd;
  if (fd >= 0) close(fd);
  shard_failure(path, "another process is saving there");
}

// While it is removed the lock is ours, made where it was missing: whoever begins there meanwhile finds it taken.
void remove_left_folder(const fs::path& place, const fs::path& path) {
  int fd = open((place / "lock").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
  bool busy = fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  std::error_code error;
  if (!busy) fs::remove_all(place, error);
  if (fd >= 0) close(fd);
  if (busy) shard_failure(path, "another process is saving there");
  if (error)
    shard_failure(path, "what a killed save left in '" + place.string() + "' cannot be removed: " + error.message());
}

void sync_after_move(const fs::path& path) {
  if (auto error = sync_path(folder_of(path)))
    throw CheckpointError(
        "the new checkpoint '" + path.string() +
        "' is in place, but its folder cannot be synced, so that a power failure may undo it: " + error.message());
}

// False where names cannot be exchanged. Afterwards the old one has the name of a save at work, and so that no other
// save begins there while it is removed, it has a lock that is held.
bool exchange(const fs::path& place, const fs::path& path) {
  struct Lock {
    int fd;
    ~Lock() {
      if (fd >= 0) close(fd);
    }
  } lock{open((path / "lock").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666)};
  if (lock.fd >= 0) flock(lock.fd, LOCK_EX | LOCK_NB);
  if (renameat2(AT_FDCWD, place.c_str(), AT_FDCWD, path.c_str(), RENAME_EXCHANGE) != 0) return false;
  sync_after_move(path);
  std::error_code ignored;
  if (lock.fd >= 0)
    fs::remove_all(place, ignored);
  else if (unlink(place.c_str()) != 0 && errno == EISDIR)  // a file, or a folder that takes no lock
    fs::remove_all(place, ignored);
  return true;
}

void move_into_place(const fs::path& place, const fs::path& path) {
  std::error_code error, ignored;
  const fs::path aside = replaced_sharded(path);
  const bool taken = fs::exists(fs::symlink_status(path, ignored));
  // Of a kill; its successor has the name. Where nothing has it, it is the only whole one until the end.
  if (taken) fs::remove_all(aside, ignored);
  if (taken && exchange(place, path)) return;
  if (taken) fs::rename(path, aside, error);
  if (!error) {
    fs::rename(place, path, error);
    if (error && taken) fs::rename(aside, path, ignored);
  }
  if (error) shard_failure(path, "'" + place.string() + "' cannot be moved into place: " + error.message());
  sync_after_move(path);
  fs::remove_all(aside, ignored);
}

fs::path make_place(const fs::path& path) {
  require_replaceable(path);
  if (auto error = make_folders(folder_of(through_link(path))))
    shard_failure(path, "its folder cannot be made: " + error.message());
  fs::path place = partial_folder(through_link(path));
  if (mkdir(place.c_str(), 0777) == 0) return place;
  if (errno != EEXIST) shard_failure(path, "'" + place.string() + "' cannot be made: " + std::strerror(errno));
  remove_left_folder(place, path);
  if (mkdir(place.c_str(), 0777) != 0)
    shard_failure(path, "'" + place.string() + "' cannot be made: " + std::strerror(errno));
  return place;
}

}  // namespace

void shard_failure(const fs::path& path, const std::string& why) {
  throw CheckpointError("cannot write the checkpoint '" + path.string() + "': " + why);
}

SaveFolder::SaveFolder(const fs::path& path) : place_(make_place(path)), lock_(claim(place_, path)) {}

SaveFolder::SaveFolder(SaveFolder&& other) noexcept
    : place_(std::move(other.place_)), lock_(std::exchange(other.lock_, -1)) {}

SaveFolder::~SaveFolder() {
  if (lock_ >= 0) close(lock_);
}

void SaveFolder::move_to(const fs::path& path) {
  if (auto error = sync_path(place_))
    shard_failure(path, "'" + place_.string() + "' cannot be synced: " + error.message());
  move_into_place(place_, through_link(path));
  // Not before: the lock is what tells that the folder is no killed save's.
  std::error_code ignored;
  fs::remove(path / "lock", ignored);
}

}  // namespace fabric::checkpoint

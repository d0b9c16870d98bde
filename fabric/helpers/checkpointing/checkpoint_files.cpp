#include <fabric/helpers/checkpointing/checkpoint_files_internal.h>

#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <unistd.h>

#include <fabric/base/atomic_file_internal.h>
#include <fabric/base/error.h>

namespace fabric {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const std::string& what, const fs::path& path, const std::string& why) {
  throw CheckpointError("cannot " + what + " '" + path.string() + "': " + why);
}

// Of no use to anybody until it is renamed; the next call takes it over when a kill left it.
fs::path temporary_for(const fs::path& path) {
  return folder_of(path) / ("." + path.filename().string() + ".partial-link");
}

void make_folder(const fs::path& path) {
  if (auto error = make_folders(folder_of(path))) fail("make the folder of", path, error.message());
}

void move_into_place(const fs::path& temporary, const fs::path& path) {
  std::error_code error, ignored;
  // A folder cannot be renamed over: the two exchange their names, where the file system can, and the old one goes.
  const bool folder = fs::is_directory(fs::symlink_status(path, ignored));
  if (!folder || renameat2(AT_FDCWD, temporary.c_str(), AT_FDCWD, path.c_str(), RENAME_EXCHANGE) != 0) {
    if (folder) fs::remove_all(path, ignored);
    fs::rename(temporary, path, error);
  }
  // Two names of one file stay as they are when one is renamed to the other.
  fs::remove_all(temporary, ignored);
  if (error) fail("move a new file to", path, error.message());
  if (auto unsynced = sync_path(folder_of(path)))
    throw CheckpointError("the new file '" + path.string() +
                          "' is in place, but its folder cannot be synced: " + unsynced.message());
}

// A file, or a folder with what is in it.
std::error_code sync_all(const fs::path& path) {
  std::error_code error;
  if (fs::is_directory(path))
    for (fs::recursive_directory_iterator at(path, error), end; !error && at != end; at.increment(error))
      if (error = sync_path(at->path()); error) return error;
  return error ? error : sync_path(path);
}

void copy_bytes(const fs::path& file, const fs::path& temporary, const fs::path& name) {
  std::error_code error;
  // The files in a folder are never written anew, so that both folders can share them.
  if (fs::is_directory(file))
    fs::copy(file, temporary, fs::copy_options::recursive | fs::copy_options::create_hard_links, error);
  if (error || !fs::is_directory(file)) {
    error.clear();
    fs::copy(file, temporary, fs::copy_options::recursive | fs::copy_options::overwrite_existing, error);
  }
  if (!error) error = sync_all(temporary);
  if (error) {
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
    fail("copy '" + file.string() + "' to", name, error.message());
  }
}

// Of a killed save that every rank wrote a part of, or of a removal. One whose lock is held is at work.
void remove_left_folder(const fs::path& folder) {
  int fd = open((folder / "lock").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
  std::error_code ignored;
  if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) == 0) fs::remove_all(folder, ignored);
  if (fd >= 0) close(fd);
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

// A folder goes file by file. Before that it gets a name that says so: half of one would be taken for a checkpoint, or
// keep the next save from its name.
void remove_checkpoint(const fs::path& path) {
  std::error_code error, ignored;
  fs::path goes = path;
  if (fs::is_directory(fs::symlink_status(path, ignored))) {
    goes = folder_of(path) / ("." + path.filename().string() + ".partial-removed");
    fs::remove_all(goes, ignored);  // of a kill
    fs::rename(path, goes, error);
    if (error) goes = path;
  }
  fs::remove_all(goes, error);
  if (error) fail("remove the checkpoint", path, error.message());
}

void remove_leftovers(const fs::path& folder, const std::string& extension) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with('.') || name.find(extension + ".partial") == name.npos) continue;
    if (std::error_code ignored; fs::is_directory(entry.symlink_status(ignored))) {
      remove_left_folder(entry.path());
      continue;
    }
    int fd = open(entry.path().c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) continue;
    if (flock(fd, LOCK_EX | LOCK_NB) == 0) unlink(entry.path().c_str());
    close(fd);
  }
}

void write_text_file(const fs::path& path, const std::string& text) {
  write_whole_file(path, text, as_error<CheckpointError>);
}

}  // namespace fabric

#include "plugins/checkpoint_io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include <fabric/base/atomic_file_internal.h>
#include <fabric/base/error.h>

#ifndef MADV_POPULATE_READ  // Linux 5.14; older C libraries do not name it
#define MADV_POPULATE_READ 22
#endif

namespace fabric::checkpoint {
namespace {

[[noreturn]] void fail(const std::filesystem::path& path, const std::string& why) {
  throw CheckpointError("cannot read the checkpoint '" + path.string() + "': " + why);
}

struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) close(fd);
  }
};

}  // namespace

std::shared_ptr<MappedFile> MappedFile::open(const std::filesystem::path& path, bool stays_open) {
  if (auto why = why_not_local(path); !why.empty()) fail(path, why);
  // O_NONBLOCK: a named pipe must not hang the caller before it is refused.
  Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.fd < 0) fail(path, std::strerror(errno));
  struct stat info {};
  if (fstat(file.fd, &info) != 0) fail(path, std::strerror(errno));
  if (S_ISDIR(info.st_mode))
    fail(path,
         "it is a folder without the index of a checkpoint (index.json, .metadata or "
         "model.safetensors.index.json); one whose save was not finished has none");
  if (!S_ISREG(info.st_mode)) fail(path, "it is not a regular file");
  auto size = static_cast<std::size_t>(info.st_size);
  std::byte* data = nullptr;
  if (size > 0) {
    void* mapped = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, file.fd, 0);
    if (mapped == MAP_FAILED) fail(path, std::strerror(errno));
    data = static_cast<std::byte*>(mapped);
  }
  std::shared_ptr<MappedFile> out(new MappedFile(path, data, size));
  if (stays_open) out->fd_ = std::exchange(file.fd, -1);
  return out;
}

std::shared_ptr<MappedFile> MappedFile::part(std::shared_ptr<MappedFile> whole, std::size_t offset, std::size_t size) {
  std::shared_ptr<MappedFile> out(new MappedFile(whole->path_, whole->data_ + offset, size));
  out->whole_ = std::move(whole);
  return out;
}

MappedFile::~MappedFile() {
  if (data_ && !whole_) munmap(data_, size_);
  if (fd_ >= 0) close(fd_);
}

std::shared_ptr<std::byte> MappedFile::pages(std::size_t offset, std::size_t length) const {
  if (fd_ < 0 || peeks_ || length == 0) return nullptr;
  const std::size_t before = offset % static_cast<std::size_t>(sysconf(_SC_PAGESIZE)), all = before + length;
  void* mapped =
      mmap(nullptr, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd_, static_cast<off_t>(offset - before));
  if (mapped == MAP_FAILED) return nullptr;  // a process may have so many mappings
  std::shared_ptr<std::byte> out(static_cast<std::byte*>(mapped) + before,
                                 [mapped, all](std::byte*) { munmap(mapped, all); });
  // An unreadable page is an error of whoever reads it, as everywhere in the mapping.
  return madvise(mapped, all, MADV_POPULATE_READ) == 0 || errno == EINVAL ? out : nullptr;
}

void MappedFile::release() const {
  if (whole_) return whole_->release();
  if (data_) madvise(data_, size_, MADV_DONTNEED);
}

void MappedFile::fetch(std::size_t offset, std::size_t length) const {
  const Descriptor file{::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.fd < 0) return;  // then the mapping reads
  posix_fadvise(file.fd, 0, 0, POSIX_FADV_RANDOM);
  std::vector<char> block(std::min<std::size_t>(length, std::size_t{1} << 20));
  for (const std::size_t end = std::min(size_, offset + length); offset < end;) {
    const auto got = pread(file.fd, block.data(), std::min(block.size(), end - offset), static_cast<off_t>(offset));
    if (got <= 0) return;
    offset += static_cast<std::size_t>(got);
  }
}

bool MappedFile::populate() const {
  if (peeks_) return false;
  if (size_ == 0) return true;
  // A part begins in the middle of a page.
  const std::size_t before = reinterpret_cast<std::uintptr_t>(data_) % static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  // MAP_POPULATE would copy every page, as the mapping is private and writable.
  if (madvise(data_ - before, size_ + before, MADV_POPULATE_READ) != 0 && errno != EINVAL && errno != EINTR &&
      errno != EAGAIN)
    fail(path_, std::string("its pages cannot be read: ") + std::strerror(errno));
  return true;
}

}  // namespace fabric::checkpoint

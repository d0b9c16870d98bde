#pragma once
// What reading and writing a checkpoint is compared with: the same bytes by the system's calls alone.

#include <fcntl.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <vector>

namespace bench {

/// Written and synced.
inline void raw_write(const std::filesystem::path& path, const std::vector<char>& bytes) {
  int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  for (std::size_t done = 0; done < bytes.size();) {
    auto n = write(fd, bytes.data() + done, bytes.size() - done);
    if (n <= 0) std::abort();
    done += static_cast<std::size_t>(n);
  }
  fsync(fd);
  close(fd);
}

/// Reads every byte.
inline std::uint64_t touch(const void* data, std::size_t size) {
  std::uint64_t sum = 0, word;
  auto* bytes = static_cast<const char*>(data);
  for (std::size_t i = 0; i + 8 <= size; i += 8) {
    std::memcpy(&word, bytes + i, 8);
    sum += word;
  }
  return sum;
}

/// Into memory that is there already, which is more than a load can count on.
inline std::uint64_t raw_read(const std::filesystem::path& path, std::vector<char>& bytes) {
  int fd = open(path.c_str(), O_RDONLY);
  auto size = std::filesystem::file_size(path);
  for (std::size_t done = 0; done < size;) {
    auto n = read(fd, bytes.data() + done, size - done);
    if (n <= 0) std::abort();
    done += static_cast<std::size_t>(n);
  }
  close(fd);
  return touch(bytes.data(), size);
}

}  // namespace bench

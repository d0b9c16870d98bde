// Comparing a checkpoint with its checksums. Bytes are read, not mapped: one that the disk cannot give is a fault like
// another, and memory holds one block.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iostream>

#include <fabric/base/error.h>

#include "launcher/os/visible.h"
#include "plugins/checkpoint_io/integrity/crc32c.h"
#include "plugins/checkpoint_io/integrity/sealed_text.h"
#include "plugins/checkpoint_io/tools/catalog.h"
#include "plugins/checkpoint_io/tools/tools.h"
#include "plugins/checkpoint_io/torch/crc32.h"

namespace fabric::checkpoint {
namespace {

constexpr std::size_t kVerifyBlock = std::size_t{1} << 20;

/// One file at a time, as ranges come by file.
class RangeReader {
 public:
  explicit RangeReader(const Catalog& catalog) : catalog_(catalog), block_(kVerifyBlock) {}
  RangeReader(const RangeReader&) = delete;
  RangeReader& operator=(const RangeReader&) = delete;
  ~RangeReader() {
    if (fd_ >= 0) close(fd_);
  }

  /// Empty, or why the bytes cannot be had.
  std::string sum_up(const CheckedRange& range, std::uint32_t& sum, const std::function<void(std::uint64_t)>& done) {
    const auto& bytes = range.bytes;
    if (auto why = open_file(bytes.file); !why.empty()) return why;
    sum = 0;
    for (std::uint64_t at = bytes.begin; at < bytes.end;) {
      const auto wanted = std::min<std::uint64_t>(block_.size(), bytes.end - at);
      const auto got = pread(fd_, block_.data(), wanted, static_cast<off_t>(at));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return "cannot be read at byte " + std::to_string(at) + ": " + std::strerror(errno);
      if (got == 0) return "ends at byte " + std::to_string(at);
      const auto size = static_cast<std::size_t>(got);
      sum = range.zip ? crc32(sum, block_.data(), size) : crc32c(sum, block_.data(), size);
      at += size;
      done(size);
    }
    return {};
  }

 private:
  std::string open_file(std::size_t file) {
    if (fd_ >= 0 && file == file_) return {};
    if (fd_ >= 0) close(fd_);
    file_ = file;
    fd_ = open(catalog_.files[file].c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    return fd_ < 0 ? std::string("cannot be opened: ") + std::strerror(errno) : std::string();
  }

  const Catalog& catalog_;
  std::vector<char> block_;
  std::size_t file_ = 0;
  int fd_ = -1;
};

// The first few tensors that begin in an entry of an archive: their names say more than the entry's.
std::string tensors_within(const Catalog& catalog, const ByteRange& range) {
  constexpr std::size_t kShown = 3;
  std::string text;
  std::size_t count = 0;
  for (const auto& tensor : catalog.tensors)
    for (const auto& box : tensor.boxes)
      if (box.bytes.file == range.file && box.bytes.begin >= range.begin && box.bytes.begin < range.end &&
          ++count <= kShown)
        text += (text.empty() ? " (the tensor '" : ", '") + tensor.name + "'";
  return text.empty() ? text : text + (count > kShown ? ", …)" : ")");
}

std::string fault_text(const Catalog& catalog, const CheckedRange& range, const std::string& why) {
  const auto& bytes = range.bytes;
  return range.name + (range.zip ? tensors_within(catalog, bytes) : "") + " is damaged: bytes " +
         std::to_string(bytes.begin) + " to " + std::to_string(bytes.end) + " of '" +
         catalog.files[bytes.file].filename().string() + "': " + why;
}

}  // namespace

std::ostream& said_on(const std::filesystem::path& path) {
  std::error_code error;
  const auto found = std::filesystem::status(path, error);
  return std::filesystem::is_regular_file(found) || std::filesystem::is_directory(found) ? std::cout : std::cerr;
}

std::string printable(const std::string& text) { return visible_lines(text); }

VerifyReport verify_checkpoint(const std::filesystem::path& path, const ToolProgress& progress) {
  Catalog catalog = read_catalog(path);
  std::sort(catalog.ranges.begin(), catalog.ranges.end(), [](const auto& a, const auto& b) {
    return std::pair(a.bytes.file, a.bytes.begin) < std::pair(b.bytes.file, b.bytes.begin);
  });
  VerifyReport report{catalog.faults, catalog.format, catalog.tensors.size(), catalog.files.size(), 0, 0};
  std::uint64_t total = 0, done = 0;
  for (const auto& range : catalog.ranges) total += range.sum ? range.bytes.end - range.bytes.begin : 0;
  RangeReader reader(catalog);
  auto advance = [&](std::uint64_t bytes) {
    done += bytes;
    if (progress) progress("checking", done, total);
  };
  for (const auto& range : catalog.ranges) {
    const auto bytes = range.bytes.end - range.bytes.begin;
    (range.sum ? report.checked : report.unchecked) += bytes;
    if (!range.sum || bytes == 0) continue;
    std::uint32_t sum = 0;
    auto why = reader.sum_up(range, sum, advance);
    if (why.empty() && sum != *range.sum)
      why = std::string("they give the checksum (") + (range.zip ? "crc32" : "crc32c") + ") " + sum_text(sum) +
            " instead of " + sum_text(*range.sum);
    if (!why.empty()) report.faults.push_back(fault_text(catalog, range, why));
  }
  return report;
}

}  // namespace fabric::checkpoint

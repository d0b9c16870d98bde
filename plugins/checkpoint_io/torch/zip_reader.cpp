#include "plugins/checkpoint_io/torch/zip_reader.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include <ATen/Parallel.h>

#include <fabric/base/error.h>

#include "plugins/checkpoint_io/byte_cursor.h"
#include "plugins/checkpoint_io/torch/crc32.h"
#include "plugins/checkpoint_io/torch/zip_format.h"

namespace fabric::checkpoint {
namespace {

constexpr std::size_t kEndSize = 22, kLocatorSize = 20, kEnd64Size = 56, kLocalSize = 30, kMaxComment = 65535;
constexpr std::uint16_t kEncrypted = 1;

[[noreturn]] void wrong_zip(const std::string& why) { throw CheckpointCorrupt("the zip archive " + why); }

struct CentralEntry {
  std::string name;
  std::uint64_t stored, size, header;
  std::uint32_t checksum;
  bool compressed;
};

// Sizes and offsets that do not fit 32 bits are in a field of their own, present ones only, in this order.
void read_zip64(std::string_view extra, CentralEntry& entry) {
  ByteCursor fields(extra, "an extra field of the zip archive");
  while (fields.left() >= 4) {
    auto id = fields.number<std::uint16_t>();
    auto content = fields.take(fields.number<std::uint16_t>());
    if (id != zip::kZip64Field) continue;
    ByteCursor numbers(content, "a zip64 field");
    for (auto* number : {&entry.size, &entry.stored, &entry.header})
      if (*number == zip::kUse64) *number = numbers.number<std::uint64_t>();
  }
}

CentralEntry read_central(ByteCursor& cursor) {
  if (cursor.number<std::uint32_t>() != zip::kCentralHeader) wrong_zip("has a damaged directory");
  cursor.take(4);  // versions
  auto flags = cursor.number<std::uint16_t>();
  auto method = cursor.number<std::uint16_t>();
  cursor.take(4);  // time, date
  CentralEntry entry;
  entry.checksum = cursor.number<std::uint32_t>();
  entry.stored = cursor.number<std::uint32_t>();
  entry.size = cursor.number<std::uint32_t>();
  auto name_length = cursor.number<std::uint16_t>();
  auto extra_length = cursor.number<std::uint16_t>();
  auto comment_length = cursor.number<std::uint16_t>();
  cursor.take(8);  // disk, attributes
  entry.header = cursor.number<std::uint32_t>();
  entry.name = std::string(cursor.take(name_length));
  read_zip64(cursor.take(extra_length), entry);
  cursor.take(comment_length);
  if (flags & kEncrypted) wrong_zip("has the encrypted entry '" + entry.name + "'");
  entry.compressed = method != 0;
  if (!entry.compressed && entry.stored != entry.size) wrong_zip("has the entry '" + entry.name + "' with two sizes");
  return entry;
}

}  // namespace

ZipReader::ZipReader(std::shared_ptr<MappedFile> file) : file_(std::move(file)) { read_directory(find_directory()); }

const ZipReader::Entry* ZipReader::find(const std::string& name) const {
  auto found = entries_.find(name);
  if (found == entries_.end()) return nullptr;
  if (found->second.compressed)
    wrong_zip("has the compressed entry '" + name + "'; torch.save writes entries without compression");
  return &found->second;
}

void ZipReader::verify() const {
  std::vector<const std::pair<const std::string, Entry>*> checked;
  for (const auto& item : entries_)
    if (item.second.checksum != 0) checked.push_back(&item);
  std::atomic<const std::string*> wrong{nullptr};
  at::parallel_for(0, static_cast<std::int64_t>(checked.size()), 1, [&](std::int64_t begin, std::int64_t end) {
    for (auto i = begin; i < end && !wrong; ++i) {
      const auto& [name, entry] = *checked[static_cast<std::size_t>(i)];
      if (crc32(0, file_->data() + entry.offset, entry.size) != entry.checksum) wrong = &name;
    }
  });
  if (const auto* name = wrong.load())
    wrong_zip("has the entry '" + *name + "', whose bytes are not those that its checksum was made of: it is damaged");
}

std::size_t ZipReader::find_end() const {
  const std::size_t size = file_->size();
  if (size < kEndSize) wrong_zip("is too short");
  for (std::size_t back = kEndSize; back <= std::min(size, kEndSize + kMaxComment); ++back) {
    ByteCursor cursor(file_->text(size - back, back), "the end record");
    if (cursor.number<std::uint32_t>() != zip::kEnd) continue;
    cursor.take(16);
    // A comment that reaches beyond the file is none: these four bytes are something else.
    if (cursor.number<std::uint16_t>() <= back - kEndSize) return size - back;
  }
  wrong_zip("has no end record: it is truncated");
}

ZipReader::Directory ZipReader::find_directory() const {
  const std::size_t end = find_end();
  ByteCursor cursor(file_->text(end, kEndSize), "the end record");
  cursor.take(10);
  Directory directory{};
  directory.count = cursor.number<std::uint16_t>();
  directory.size = cursor.number<std::uint32_t>();
  directory.offset = cursor.number<std::uint32_t>();
  if (end >= kLocatorSize) {
    ByteCursor locator(file_->text(end - kLocatorSize, kLocatorSize), "the zip64 locator");
    if (locator.number<std::uint32_t>() == zip::kEnd64Locator) {
      locator.take(4);
      auto where = locator.number<std::uint64_t>();
      if (where > end || end - where < kEnd64Size) wrong_zip("has a zip64 end record outside of the file");
      ByteCursor end64(file_->text(where, kEnd64Size), "the zip64 end record");
      if (end64.number<std::uint32_t>() != zip::kEnd64) wrong_zip("has a damaged zip64 end record");
      end64.take(28);
      directory.count = end64.number<std::uint64_t>();
      directory.size = end64.number<std::uint64_t>();
      directory.offset = end64.number<std::uint64_t>();
    }
  }
  if (directory.offset > end || directory.size > end - directory.offset)
    wrong_zip("has a directory outside of the file");
  return directory;
}

void ZipReader::read_directory(const Directory& directory) {
  ByteCursor cursor(file_->text(directory.offset, directory.size), "the zip directory");
  for (std::uint64_t i = 0; i < directory.count; ++i) {
    CentralEntry entry = read_central(cursor);
    std::size_t offset = data_offset(entry.name, entry.header);
    if (entry.stored > file_->size() - offset)
      wrong_zip("has the entry '" + entry.name + "' outside of the file: it is truncated");
    if (!entries_.emplace(entry.name, Entry{offset, entry.stored, entry.checksum, entry.compressed}).second)
      wrong_zip("has the entry '" + entry.name + "' twice");
  }
}

std::size_t ZipReader::data_offset(const std::string& name, std::uint64_t header) const {
  if (header > file_->size() || file_->size() - header < kLocalSize)
    wrong_zip("has the entry '" + name + "' outside of the file");
  ByteCursor cursor(file_->text(header, kLocalSize), "a local header");
  if (cursor.number<std::uint32_t>() != zip::kLocalHeader)
    wrong_zip("has no entry where its directory says '" + name + "' is");
  cursor.take(22);
  std::uint64_t after = cursor.number<std::uint16_t>();
  after += cursor.number<std::uint16_t>();
  if (after > file_->size() - header - kLocalSize) wrong_zip("has the entry '" + name + "' outside of the file");
  return header + kLocalSize + after;
}

}  // namespace fabric::checkpoint

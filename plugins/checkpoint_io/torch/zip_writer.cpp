#include "plugins/checkpoint_io/torch/zip_writer.h"

#include "plugins/checkpoint_io/torch/crc32.h"
#include "plugins/checkpoint_io/torch/zip_format.h"

namespace fabric::checkpoint {
namespace {

constexpr std::uint64_t kMaxCount = 0xffff;
constexpr std::uint16_t kVersion = 45, kUtf8 = 0x0800, kPaddingField = 0x4246;  // "FB", as PyTorch's
constexpr std::uint64_t kEntryAlignment = 64;

class Record {
 public:
  template <class Number>
  Record& put(std::type_identity_t<Number> value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Record& put16(std::uint64_t value) { return put<std::uint16_t>(static_cast<std::uint16_t>(value)); }
  Record& put32(std::uint64_t value) { return put<std::uint32_t>(static_cast<std::uint32_t>(value)); }
  Record& put64(std::uint64_t value) { return put<std::uint64_t>(value); }
  Record& put(std::string_view text) {
    bytes_ += text;
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

std::uint64_t short_form(std::uint64_t value) { return value < zip::kUse64 ? value : zip::kUse64; }

}  // namespace

void ZipWriter::add(const std::string& name, std::string_view bytes) {
  add(name, [&](const auto& use) { use(bytes.data(), bytes.size()); });
}

void ZipWriter::add(const std::string& name, const Pieces& pieces) {
  Entry entry{name, 0, 0, file_.position()};
  pieces([&](const void* data, std::size_t size) {
    entry.checksum = crc32(entry.checksum, data, size);
    entry.size += size;
  });
  Record sizes;
  if (entry.size >= zip::kUse64) sizes.put16(zip::kZip64Field).put16(16).put64(entry.size).put64(entry.size);
  const std::uint64_t fixed = entry.offset + 30 + name.size() + sizes.bytes().size() + 4;
  const std::uint64_t padding = (kEntryAlignment - fixed % kEntryAlignment) % kEntryAlignment;
  Record header;
  header.put32(zip::kLocalHeader).put16(kVersion).put16(kUtf8).put16(0).put32(0).put32(entry.checksum);
  header.put32(short_form(entry.size)).put32(short_form(entry.size));
  header.put16(name.size()).put16(sizes.bytes().size() + 4 + padding).put(name).put(sizes.bytes());
  header.put16(kPaddingField).put16(padding).put(std::string(padding, 'Z'));
  file_.write(header.bytes());
  pieces([&](const void* data, std::size_t size) { file_.write(data, size); });
  entries_.push_back(std::move(entry));
}

void ZipWriter::finish() {
  const std::uint64_t start = file_.position();
  for (const auto& entry : entries_) {
    Record large;
    if (entry.size >= zip::kUse64) large.put64(entry.size).put64(entry.size);
    if (entry.offset >= zip::kUse64) large.put64(entry.offset);
    Record extra;
    if (!large.bytes().empty()) extra.put16(zip::kZip64Field).put16(large.bytes().size()).put(large.bytes());
    Record record;
    record.put32(zip::kCentralHeader)
        .put16(kVersion)
        .put16(kVersion)
        .put16(kUtf8)
        .put16(0)
        .put32(0)
        .put32(entry.checksum);
    record.put32(short_form(entry.size)).put32(short_form(entry.size));
    record.put16(entry.name.size()).put16(extra.bytes().size()).put16(0).put16(0).put16(0).put32(0);
    record.put32(short_form(entry.offset)).put(entry.name).put(extra.bytes());
    file_.write(record.bytes());
  }
  const std::uint64_t end = file_.position(), size = end - start, count = entries_.size();
  Record tail;
  if (count >= kMaxCount || start >= zip::kUse64 || size >= zip::kUse64) {
    tail.put32(zip::kEnd64).put64(44).put16(kVersion).put16(kVersion).put32(0).put32(0);
    tail.put64(count).put64(count).put64(size).put64(start);
    tail.put32(zip::kEnd64Locator).put32(0).put64(end).put32(1);
  }
  const std::uint64_t short_count = count < kMaxCount ? count : kMaxCount;
  tail.put32(zip::kEnd).put16(0).put16(0).put16(short_count).put16(short_count);
  tail.put32(short_form(size)).put32(short_form(start)).put16(0);
  file_.write(tail.bytes());
}

}  // namespace fabric::checkpoint

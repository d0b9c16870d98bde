#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace fabric {

/// CRC-32C (Castagnoli) of the bytes.
std::uint32_t crc32c(std::string_view bytes);

/// Builds a protocol buffer message field by field, in the wire format. Zero and empty fields are written too.
class Message {
 public:
  Message& varint(int field, std::uint64_t value);
  Message& float32(int field, float value);
  Message& float64(int field, double value);
  /// A string, bytes or a message.
  Message& bytes(int field, std::string_view value);
  Message& message(int field, const Message& value) { return bytes(field, value.data_); }
  const std::string& data() const { return data_; }

 private:
  void key(int field, int type);
  void raw_varint(std::uint64_t value);
  std::string data_;
};

/// A TensorBoard event file: records of length, checksum, event, checksum.
class EventFile {
 public:
  /// Opens `folder/events.out.tfevents.<time>.<host>.<pid>.<n>`. Throws Error when that fails.
  EventFile(const std::filesystem::path& folder, int max_queue, double flush_secs);
  /// Does not write what is buffered: flush can throw, a destructor cannot.
  ~EventFile();
  EventFile(const EventFile&) = delete;
  EventFile& operator=(const EventFile&) = delete;

  /// One value of a Summary message, as an event at `step`.
  void add_summary_value(const Message& value, std::int64_t step);
  /// Throws Error when the disk does not take all events; those that are left are written with the next flush.
  void flush();

 private:
  void add(const Message& event);
  void keep(const Message& event);
  std::filesystem::path path_;
  int fd_ = -1;
  std::string waiting_;
  int events_waiting_ = 0;
  int max_queue_;
  double flush_secs_;
  double last_flush_;
};

}  // namespace fabric

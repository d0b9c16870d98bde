#include "plugins/loggers/event_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>

#include <fabric/base/error.h>

namespace fabric {
namespace {

double wall_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// Fixed-width numbers are little-endian whatever the machine is.
template <class Integer>
void append_little_endian(std::string& out, Integer value) {
  for (std::size_t i = 0; i < sizeof value; ++i) out += static_cast<char>(value >> (8 * i) & 0xFF);
}

template <class Integer, class Float>
Integer bits_of(Float value) {
  static_assert(sizeof(Integer) == sizeof(Float));
  Integer bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Records store checksums rotated and shifted, since a checksum over data that holds checksums is weak.
std::uint32_t masked_crc(std::string_view bytes) {
  std::uint32_t crc = crc32c(bytes);
  return (crc >> 15 | crc << 17) + 0xA282EAD8u;
}

}  // namespace

std::uint32_t crc32c(std::string_view bytes) {
  static const auto table = [] {
    std::array<std::uint32_t, 256> all{};
    for (std::uint32_t i = 0; i < 256; ++i) {
      std::uint32_t value = i;
      for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ (value & 1 ? 0x82F63B78u : 0);
      all[i] = value;
    }
    return all;
  }();
  std::uint32_t crc = 0xFFFFFFFFu;
  for (unsigned char byte : bytes) crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF];
  return ~crc;
}

void Message::raw_varint(std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) data_ += static_cast<char>(value | 0x80);
  data_ += static_cast<char>(value);
}

void Message::key(int field, int type) { raw_varint(static_cast<std::uint64_t>(field) << 3 | type); }

Message& Message::varint(int field, std::uint64_t value) {
  key(field, 0);
  raw_varint(value);
  return *this;
}

Message& Message::float64(int field, double value) {
  key(field, 1);
  append_little_endian(data_, bits_of<std::uint64_t>(value));
  return *this;
}

Message& Message::float32(int field, float value) {
  key(field, 5);
  append_little_endian(data_, bits_of<std::uint32_t>(value));
  return *this;
}

Message& Message::bytes(int field, std::string_view value) {
  key(field, 2);
  raw_varint(value.size());
  data_ += value;
  return *this;
}

EventFile::EventFile(const std::filesystem::path& folder, int max_queue, double flush_secs)
    : max_queue_(max_queue), flush_secs_(flush_secs), last_flush_(wall_time()) {
  static std::atomic<int> counter{0};
  char host[256] = "localhost";
  gethostname(host, sizeof host - 1);
  char time[32];
  std::snprintf(time, sizeof time, "%010lld", static_cast<long long>(last_flush_));
  const std::string stem =
      std::string("events.out.tfevents.") + time + "." + host + "." + std::to_string(getpid()) + ".";
  // A new file: two processes of two containers may have the same host name, time and pid.
  do {
    path_ = folder / (stem + std::to_string(counter++));
    fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0644);
  } while (fd_ < 0 && errno == EEXIST);
  if (fd_ < 0) throw Error("cannot write " + path_.string() + ": " + std::strerror(errno));
  // Only kept: were the disk full, an error here would leave an open file that nobody closes.
  keep(Message().float64(1, last_flush_).bytes(3, "brain.Event:2"));
}

EventFile::~EventFile() {
  if (fd_ >= 0) ::close(fd_);
}

void EventFile::add_summary_value(const Message& value, std::int64_t step) {
  Message event;
  event.float64(1, wall_time()).varint(2, static_cast<std::uint64_t>(step)).message(5, Message().message(1, value));
  add(event);
}

void EventFile::add(const Message& event) {
  keep(event);
  if (events_waiting_ >= max_queue_ || wall_time() - last_flush_ >= flush_secs_) flush();
}

void EventFile::keep(const Message& event) {
  std::string length;
  append_little_endian(length, static_cast<std::uint64_t>(event.data().size()));
  waiting_ += length;
  append_little_endian(waiting_, masked_crc(length));
  waiting_ += event.data();
  append_little_endian(waiting_, masked_crc(event.data()));
  ++events_waiting_;
}

void EventFile::flush() {
  std::size_t done = 0;
  while (done < waiting_.size()) {
    ssize_t n = ::write(fd_, waiting_.data() + done, waiting_.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      std::string why = std::strerror(errno);
      waiting_.erase(0, done);
      throw Error("cannot write " + path_.string() + ": " + why);
    }
    done += n;
  }
  waiting_.clear();
  events_waiting_ = 0;
  last_flush_ = wall_time();
}

}  // namespace fabric

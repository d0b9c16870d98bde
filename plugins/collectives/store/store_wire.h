#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

// The bytes between the job's store and its clients.
//
// A client begins with kMagic and one frame, its greeting; the server answers with one frame, a Status and, unless that
// is ok, a text, and closes the connection. After a greeting that was accepted the client sends requests, one at a
// time: a new one takes back one that still waits. Each request carries a number that its reply repeats.
//
//     frame:    u32 size of what follows, in the sender's byte order (both sides are of one build)
//     greeting: text job, i64 world size, i64 restart count, i64 rank, text who, i64 token
//     request:  i64 number, u8 Request, fields
//     reply:    i64 number, u8 Status, fields
//     text:     u32 size, bytes
//
// Nothing is allocated on the word of a size: bytes are kept as they come, strangers' up to kGreetingLimit.
namespace fabric::collectives::wire {

inline constexpr std::string_view kMagic = "TFSTORE1";
inline constexpr std::size_t kGreetingLimit = 4096;
inline constexpr std::size_t kFrameLimit = 256u << 20;
inline constexpr std::size_t kSizeBytes = sizeof(std::uint32_t);

/// `absent`: which ranks were members and are connected no more.
enum class Request : std::uint8_t { set, add, compare_set, remove, check, count, get, append, absent };
enum class Status : std::uint8_t { ok, refused };

/// Who a client says it is.
struct Greeting {
  std::string job;  // in words, as the ranks' environment names it; may be empty
  std::int64_t world_size = 1;
  std::int64_t restart_count = 0;
  std::int64_t rank = 0;
  std::string who;         // "process 12 on host n1"
  std::int64_t token = 0;  // of the process, so that its connections are known to be one's
};

class Writer {
 public:
  explicit Writer(std::string& out) : out_(out), begin_(out.size()) { out_.append(kSizeBytes, '\0'); }
  void number(std::int64_t value) { out_.append(reinterpret_cast<const char*>(&value), sizeof value); }
  void byte(std::uint8_t value) { out_.push_back(static_cast<char>(value)); }
  void text(std::string_view value) {
    size(value.size());
    out_.append(value);
  }
  void texts(const std::vector<std::string>& values) {
    size(values.size());
    for (const auto& value : values) text(value);
  }
  /// Call it when all is written.
  void finish() {
    auto bytes = static_cast<std::uint32_t>(out_.size() - begin_ - kSizeBytes);
    std::memcpy(out_.data() + begin_, &bytes, sizeof bytes);
  }

 private:
  void size(std::size_t value) {
    auto bytes = static_cast<std::uint32_t>(value);
    out_.append(reinterpret_cast<const char*>(&bytes), sizeof bytes);
  }
  std::string& out_;
  std::size_t begin_;
};

/// Reads what a Writer wrote; what is missing makes it bad, and reads as nothing.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : rest_(bytes) {}
  bool good() const { return good_; }
  bool at_end() const { return rest_.empty(); }
  std::int64_t number() { return take<std::int64_t>(); }
  std::uint8_t byte() { return take<std::uint8_t>(); }
  std::string text() {
    auto size = take<std::uint32_t>();
    if (size > rest_.size()) good_ = false;
    if (!good_) return "";
    std::string value(rest_.substr(0, size));
    rest_.remove_prefix(size);
    return value;
  }
  std::vector<std::string> texts() {
    auto count = take<std::uint32_t>();
    std::vector<std::string> values;
    for (std::uint32_t i = 0; i < count && good_; ++i) values.push_back(text());
    return values;
  }

 private:
  template <class T>
  T take() {
    T value{};
    if (rest_.size() < sizeof value) good_ = false;
    if (!good_) return T{};
    std::memcpy(&value, rest_.data(), sizeof value);
    rest_.remove_prefix(sizeof value);
    return value;
  }
  std::string_view rest_;
  bool good_ = true;
};

/// The payload of the frame that `bytes` begin with; nothing while it is incomplete. `too_large` is set for one above
/// the limit.
inline std::optional<std::string_view> frame_in(std::string_view bytes, std::size_t limit, bool& too_large) {
  too_large = false;
  if (bytes.size() < kSizeBytes) return std::nullopt;
  std::uint32_t size = 0;
  std::memcpy(&size, bytes.data(), sizeof size);
  if (size > limit) {
    too_large = true;
    return std::nullopt;
  }
  if (bytes.size() - kSizeBytes < size) return std::nullopt;
  return bytes.substr(kSizeBytes, size);
}

inline void write(std::string& out, const Greeting& greeting) {
  Writer writer(out);
  writer.text(greeting.job);
  writer.number(greeting.world_size);
  writer.number(greeting.restart_count);
  writer.number(greeting.rank);
  writer.text(greeting.who);
  writer.number(greeting.token);
  writer.finish();
}

inline std::optional<Greeting> read_greeting(std::string_view bytes) {
  Reader reader(bytes);
  Greeting greeting;
  greeting.job = reader.text();
  greeting.world_size = reader.number();
  greeting.restart_count = reader.number();
  greeting.rank = reader.number();
  greeting.who = reader.text();
  greeting.token = reader.number();
  return reader.good() && reader.at_end() ? std::optional(greeting) : std::nullopt;
}

}  // namespace fabric::collectives::wire

#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

// What the launcher at the keyboard and one that it started on a host say to each other over ssh: lists of texts of any
// bytes, the first of which says what it is about. Downwards, over stdin, they come one behind the other; upwards, on
// stderr between lines of ranks, each is a line that begins with a mark.
namespace fabric::run {

using Packet = std::vector<std::string>;

/// Each text as `LENGTH:BYTES,`.
std::string pack(const Packet& packet);
/// The reverse; nothing when the bytes are none.
std::optional<Packet> unpack(std::string_view bytes);

/// As a line, newline included: the mark, a blank, and the packed bytes in hexadecimal digits.
std::string packet_line(const std::string& mark, const Packet& packet);
/// The packet of such a line (without its newline); nothing when the line is another.
std::optional<Packet> read_packet_line(const std::string& mark, std::string_view line);

/// Packets out of a stream. A stream that holds something else, or a packet of more than 64 MiB, is broken from there.
class PacketReader {
 public:
  void feed(std::string_view bytes) { bytes_.append(bytes); }
  std::optional<Packet> next();
  bool is_broken() const { return is_broken_; }

 private:
  std::string bytes_;
  bool is_broken_ = false;
};

/// What is fed to a PacketReader.
std::string framed(const Packet& packet);

}  // namespace fabric::run

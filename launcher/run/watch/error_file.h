#pragma once

#include <optional>
#include <string>

namespace fabric::run {

/// What a worker wrote about its own end, in torchrun's format.
struct ErrorFile {
  std::string message;    // "RuntimeError: no such file"
  std::string backtrace;  // may be empty
  /// It ended because of its settings: `message` is a line for people as it is.
  bool of_settings = false;
  /// Set when there is a file that cannot be understood: half written, binary, too big. The rest is then empty.
  std::string problem;
};

/// Reads a worker's file; nothing when it wrote none. Never throws, whatever the file holds.
std::optional<ErrorFile> read_error_file(const std::string& path);
/// The same for text.
ErrorFile parse_error_file(const std::string& text);
/// Copies the file of the first failure to the launcher's own TORCHELASTIC_ERROR_FILE with the exit code added, the way
/// AtomicFile writes. Does nothing when it cannot be read or written.
void hand_up_error_file(const std::string& from, const std::string& to, int code);

}  // namespace fabric::run

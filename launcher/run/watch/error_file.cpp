#include "launcher/run/watch/error_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include <fabric/base/atomic_file_internal.h>
#include <fabric/base/tree_io.h>

namespace fabric::run {
namespace {

constexpr std::size_t kLongestFile = 1 << 20;
constexpr std::size_t kLongestMessage = 4000, kLongestBacktrace = 32000;

// A FIFO must not hold us up, and a device has no end.
std::optional<std::string> read_regular(const std::string& path, std::string& problem) {
  int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    if (errno != ENOENT) problem = std::strerror(errno);
    return std::nullopt;
  }
  struct stat info;
  std::string text;
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode))
    problem = "it is no regular file";
  else if (static_cast<std::size_t>(info.st_size) > kLongestFile)
    problem = "it has more than a megabyte";
  char buffer[16384];
  for (ssize_t size; problem.empty() && text.size() <= kLongestFile && (size = read(fd, buffer, sizeof buffer)) > 0;)
    text.append(buffer, static_cast<std::size_t>(size));
  close(fd);
  if (!problem.empty()) return std::nullopt;
  return text;
}

Tree read_bounded(const std::string& text) {
  return read_json(text, "the error file", {.bytes = kLongestFile, .depth = 32, .nodes = 100000});
}

// A cut in the middle of a UTF-8 sequence would make our own report unreadable.
std::string shortened(std::string text, std::size_t limit) {
  if (text.size() <= limit) return text;
  while (limit > 0 && (static_cast<unsigned char>(text[limit]) & 0xC0) == 0x80) --limit;
  return text.substr(0, limit) + "…";
}

std::string text_of(const Tree* tree) {
  if (!tree) return "";
  if (tree->is_string()) return tree->as_string();
  return tree->is_int() ? std::to_string(tree->as_int()) : "";
}

}  // namespace

ErrorFile parse_error_file(const std::string& text) {
  ErrorFile found;
  Tree tree;
  try {
    tree = read_bounded(text);
  } catch (const Error& error) {
    found.problem = text.empty() ? "it is empty" : error.what();
    return found;
  }
  const Tree* message = tree.find("message");
  const Tree* extra = message ? message->find("extraInfo") : nullptr;
  if (message && message->is_string()) {
    found.message = message->as_string();
  } else if (message && message->is_map()) {
    found.message = text_of(message->find("message"));
    if (extra && extra->is_map()) {
      found.backtrace = shortened(text_of(extra->find("py_callstack")), kLongestBacktrace);
      const Tree* mark = extra->find("settings");
      found.of_settings = mark && mark->is_bool() && mark->as_bool();
    }
  }
  if (found.message.empty()) found.problem = "it has no message";
  found.message = shortened(found.message, kLongestMessage);
  return found;
}

std::optional<ErrorFile> read_error_file(const std::string& path) {
  if (path.empty()) return std::nullopt;
  std::string problem;
  auto text = read_regular(path, problem);
  if (text) return parse_error_file(*text);
  if (problem.empty()) return std::nullopt;
  return ErrorFile{.problem = problem};
}

void hand_up_error_file(const std::string& from, const std::string& to, int code) {
  std::string problem;
  auto text = read_regular(from, problem);
  if (!text || to.empty()) return;
  try {
    Tree tree = read_bounded(*text);
    if (Tree* message = tree.is_map() ? tree.as_map().find("message") : nullptr) {
      if (message->is_map())
        (*message)["errorCode"] = code;
      else
        tree["errorCode"] = code;
    }
    text = write_json(tree);
  } catch (const Error&) {
    return;
  }
  try {
    write_whole_file(to, *text);
  } catch (const Error&) {  // the report says the same
  }
}

}  // namespace fabric::run

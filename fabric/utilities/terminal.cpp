#include "fabric/utilities/terminal_internal.h"

#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include <fabric/base/env_reader.h>

namespace fabric::terminal {

bool is_terminal(int fd) { return isatty(fd) == 1; }

namespace {

// `fabric run` tells its workers how much room they have on its terminal; 0: this is no pipe to one.
int columns_of_launcher(int fd) {
  struct stat info;
  if (fd != 2 || fstat(fd, &info) != 0 || !S_ISFIFO(info.st_mode)) return 0;
  auto value = process_env()->get("FABRIC_PROGRESS_COLUMNS");
  return value ? std::clamp(std::atoi(value->c_str()), 0, 10000) : 0;
}

}  // namespace

bool shows_pictures(int fd) { return is_terminal(fd) || columns_of_launcher(fd) > 0; }

int columns(int fd) {
  winsize size{};
  if (ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  int given = columns_of_launcher(fd);
  return given > 0 ? given : 80;
}

bool utf8() {
  auto env = process_env();
  // The first of these that is set decides, as in the C library.
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    auto value = env->get(name);
    if (!value || value->empty()) continue;
    std::transform(value->begin(), value->end(), value->begin(), [](unsigned char c) { return std::tolower(c); });
    return value->find("utf-8") != std::string::npos || value->find("utf8") != std::string::npos;
  }
  return false;
}

std::size_t width(const std::string& text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

std::string cut(const std::string& text, std::size_t width) {
  std::size_t shown = 0;
  for (std::size_t at = 0; at < text.size(); ++at)
    if ((text[at] & 0xC0) != 0x80 && ++shown > width) return text.substr(0, at);
  return text;
}

std::string clock_text(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0 || seconds > 1e7) return "?";
  auto whole = static_cast<long>(seconds + 0.5);
  char text[32];
  if (whole >= 3600)
    std::snprintf(text, sizeof text, "%ld:%02ld:%02ld", whole / 3600, whole / 60 % 60, whole % 60);
  else
    std::snprintf(text, sizeof text, "%02ld:%02ld", whole / 60, whole % 60);
  return text;
}

std::string short_number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", value);
  return text;
}

std::string exact_number(double value) {
  char text[32];
  return std::string(text, std::to_chars(text, text + sizeof text, value).ptr);
}

}  // namespace fabric::terminal

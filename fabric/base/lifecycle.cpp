#include <fabric/base/lifecycle.h>

#include <charconv>

#include <fabric/base/error.h>
#include <fabric/base/log.h>

namespace fabric::detail {

std::string removal_version(std::string_view since) {
  const std::size_t dot = since.find('.');
  int major = 0, minor = 0;
  auto read = [](std::string_view text, int& number) {
    auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    return error == std::errc() && end == text.data() + text.size() && number >= 0;
  };
  if (dot == since.npos || !read(since.substr(0, dot), major) || !read(since.substr(dot + 1), minor))
    throw MisuseError("'" + std::string(since) + "' is no version to deprecate since; write MAJOR.MINOR, such as 0.3");
  return std::to_string(major) + "." + std::to_string(minor + 2);
}

void warn_deprecated(std::string_view what, std::string_view since, std::string_view advice) {
  std::string text(what);
  text += " is deprecated since TorchFabric " + std::string(since) + " and will be gone in " + removal_version(since);
  if (!advice.empty()) text += ": " + std::string(advice);
  log::warn_once(text);
}

void warn_experimental(std::string_view what) {
  log::warn_once(std::string(what) + " is experimental: it may change or go in any release");
}

}  // namespace fabric::detail

#include "launcher/run/options.h"

#include <string.h>

#include <charconv>
#include <csignal>

#include <fabric/base/nearest_name.h>

namespace fabric::run {
namespace {

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin <= text.size();) {
    std::size_t end = std::min(text.find(separator, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

std::optional<int> to_number(const std::string& text) {
  int number = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number < 0) return std::nullopt;
  return number;
}

int stream_bits(const std::string& text, const std::string& choice, const std::string& flag) {
  auto bits = to_number(text);
  if (!bits || *bits > 3)
    throw ConfigError(flag + " " + choice +
                      ": give 0 (none), 1 (stdout), 2 (stderr) or 3 (both), for all ranks or as 0:3,12:1 for some");
  return *bits;
}

}  // namespace

int streams_of(const std::string& choice, int local_rank, const std::string& flag) {
  if (choice.find(':') == std::string::npos) return stream_bits(choice, choice, flag);
  int found = 0;
  for (const auto& part : split(choice, ',')) {
    auto colon = part.find(':');
    auto rank = to_number(part.substr(0, colon));
    if (colon == std::string::npos || !rank) return stream_bits("", choice, flag);
    int bits = stream_bits(part.substr(colon + 1), choice, flag);
    if (*rank == local_rank) found = bits;
  }
  return found;
}

std::vector<int> parse_ranks(const std::string& text, const std::string& flag) {
  std::vector<int> ranks;
  if (text.empty()) return ranks;
  for (const auto& part : split(text, ',')) {
    auto rank = to_number(part);
    if (!rank) throw ConfigError(flag + " " + text + ": give local ranks separated by commas, as 0,3,12");
    ranks.push_back(*rank);
  }
  return ranks;
}

std::vector<int> parse_signals(const std::string& text, const std::string& flag) {
  std::vector<int> numbers;
  if (text.empty() || text == "none") return numbers;
  for (auto part : split(text, ',')) {
    for (auto& letter : part) letter = static_cast<char>(toupper(letter));
    if (part.starts_with("SIG")) part = part.substr(3);
    auto found = to_number(part);
    std::vector<std::string> names;
    for (int number = 1; number < NSIG && !found; ++number) {
      const char* name = sigabbrev_np(number);
      if (!name) continue;
      names.push_back(name);
      if (part == name) found = number;
    }
    if (!found || *found < 1 || *found >= NSIG)
      throw ConfigError(flag + ": there is no signal '" + part + "'" + did_you_mean(part, names));
    if (*found == SIGKILL || *found == SIGSTOP)
      throw ConfigError(flag + ": SIG" + part + " cannot be handled by any program");
    numbers.push_back(*found);
  }
  return numbers;
}

}  // namespace fabric::run

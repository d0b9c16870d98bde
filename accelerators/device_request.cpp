#include "accelerators/device_request.h"

#include <algorithm>
#include <charconv>
#include <numeric>
#include <optional>
#include <string_view>

namespace fabric {
namespace {

constexpr const char* kAllowed =
    "Write a number of devices (2), a list of indices ([0, 2] or \"0,2\"), -1 for all of them, or \"auto\"";

[[noreturn]] void refuse(const DeviceSpec& spec, const std::string& why) {
  throw ConfigError("devices=" + spec.text() + ": " + why + ". " + kAllowed);
}

std::string_view trimmed(std::string_view text) {
  auto first = text.find_first_not_of(" \t");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

std::optional<int> as_number(std::string_view text) {
  int number = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

std::vector<int> read_list(const DeviceSpec& spec, std::string_view text) {
  std::vector<int> indices;
  while (!text.empty()) {
    auto comma = text.find(',');
    auto item = trimmed(text.substr(0, comma));
    auto index = as_number(item);
    if (!index) refuse(spec, std::string(item) + " is no device index");
    if (*index < 0) refuse(spec, "device indices are not negative, given " + std::to_string(*index));
    if (std::find(indices.begin(), indices.end(), *index) != indices.end())
      refuse(spec, "device " + std::to_string(*index) + " is named twice");
    indices.push_back(*index);
    text = comma == std::string_view::npos ? std::string_view() : trimmed(text.substr(comma + 1));
  }
  if (indices.empty()) refuse(spec, "the list is empty");
  return indices;
}

}  // namespace

DeviceRequest read_device_request(const DeviceSpec& spec) {
  using Kind = DeviceRequest::Kind;
  auto text = trimmed(spec.text());
  if (text == "auto") return {};
  bool brackets = text.size() >= 2 && text.front() == '[' && text.back() == ']';
  if (brackets) text = trimmed(text.substr(1, text.size() - 2));
  if (brackets || text.find(',') != std::string_view::npos) return {Kind::list, 0, read_list(spec, text)};
  auto number = as_number(text);
  if (!number) refuse(spec, text.empty() ? "nothing is written there" : "that is no number");
  if (*number == -1) return {Kind::all, 0, {}};
  if (*number == 0) refuse(spec, "at least one device is needed");
  if (*number < 0) refuse(spec, "a number of devices is positive");
  return {Kind::count, *number, {}};
}

std::vector<int> parse_device_indices(const DeviceSpec& spec, int present, const std::string& noun) {
  auto request = read_device_request(spec);
  std::string there = present == 1 ? "only 1 " + noun + " is there (index 0)"
                                   : "only " + std::to_string(present) + " " + noun + "s are there (indices 0 to " +
                                         std::to_string(present - 1) + ")";
  if (request.kind == DeviceRequest::Kind::list) {
    for (int index : request.indices)
      if (index >= present) refuse(spec, "there is no " + noun + " " + std::to_string(index) + ", " + there);
    return request.indices;
  }
  if (request.kind == DeviceRequest::Kind::count && request.count > present) refuse(spec, there);
  std::vector<int> indices(request.kind == DeviceRequest::Kind::count ? request.count : present);
  std::iota(indices.begin(), indices.end(), 0);
  return indices;
}

}  // namespace fabric

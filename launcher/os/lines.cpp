#include "launcher/os/lines.h"

namespace fabric {

void Lines::feed(std::string_view bytes, const std::string& prefix, std::string& out) {
  for (std::size_t end; (end = bytes.find('\n')) != std::string_view::npos; bytes.remove_prefix(end + 1)) {
    partial_ += bytes.substr(0, end);
    add(std::move(partial_), prefix, out);
    partial_.clear();
  }
  partial_ += bytes;
  for (; partial_.size() > kLongest; partial_.erase(0, kLongest)) add(partial_.substr(0, kLongest), prefix, out);
}

void Lines::finish(const std::string& prefix, std::string& out) {
  if (!partial_.empty()) add(std::move(partial_), prefix, out);
  partial_.clear();
}

void Lines::add(std::string line, const std::string& prefix, std::string& out) {
  out.append(prefix).append(line).push_back('\n');
  constexpr std::size_t kShown = 1000;
  if (line.size() > kShown) line = line.substr(0, kShown) + "…";
  last_.push_back(std::move(line));
  if (last_.size() > kKept) last_.pop_front();
}

}  // namespace fabric

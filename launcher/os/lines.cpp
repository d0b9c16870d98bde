#include "launcher/os/lines.h"

namespace fabric {

void Lines::feed(std::string_view bytes, const std::string& prefix, std::string& out) {
  for (std::size_t end; (end = bytes.find('\n')) != std::string_view::npos; bytes.remove_prefix(end + 1)) {
    partial_ += bytes.substr(0, end);
    bool ends_with_return = partial_.ends_with('\r');
    if (ends_with_return) partial_.pop_back();
    take_returns(prefix, out);
    // A bare line end leaves what stands there.
    if (partial_.empty() && !overwritten_.empty()) partial_ = overwritten_;
    if (ends_with_return) partial_ += '\r';
    add(std::move(partial_), prefix, out);
    start_afresh();
  }
  partial_ += bytes;
  take_returns(prefix, out);
  for (; partial_.size() > kLongest; partial_.erase(0, kLongest)) add(partial_.substr(0, kLongest), prefix, out);
}

// The last return stays, since a line end may follow it.
void Lines::take_returns(const std::string& prefix, std::string& out) {
  std::size_t begin = 0;
  for (std::size_t at; (at = partial_.find('\r', begin)) != std::string::npos && at + 1 < partial_.size();
       begin = at + 1) {
    has_returned_ = true;
    if (at == begin) continue;
    auto text = std::string_view(partial_).substr(begin, at - begin);
    if (!keeps_picture_) out.append(prefix).append(text).push_back('\r');
    overwritten_ = keeps_picture_ ? text : std::string_view();
  }
  partial_.erase(0, begin);
}

std::string Lines::picture() const {
  if (!keeps_picture_) return "";
  bool ends_with_return = partial_.ends_with('\r');
  auto text = partial_.substr(0, partial_.size() - ends_with_return);
  if (!has_returned_ && !ends_with_return) return "";
  return text.empty() ? overwritten_ : text;
}

void Lines::finish(const std::string& prefix, std::string& out) {
  if (partial_.empty()) partial_ = overwritten_;
  if (!partial_.empty()) add(std::move(partial_), prefix, out);
  start_afresh();
}

void Lines::start_afresh() {
  partial_.clear();
  overwritten_.clear();
  has_returned_ = false;
}

void Lines::add(std::string line, const std::string& prefix, std::string& out) {
  out.append(prefix).append(line).push_back('\n');
  constexpr std::size_t kShown = 1000;
  if (line.size() > kShown) line = line.substr(0, kShown) + "…";
  last_.push_back(std::move(line));
  if (last_.size() > kKept) last_.pop_front();
}

}  // namespace fabric

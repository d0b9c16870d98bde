#include "plugins/environments/hostlist.h"

#include <charconv>
#include <cstdint>
#include <string_view>

#include <fabric/base/error.h>

namespace fabric {
namespace {

bool is_separator(char c) { return c == ',' || c == ' ' || c == '\t' || c == '\n'; }

/// Digits; no 64 bit number needs more, and padding cannot make long names out of a short list.
constexpr std::size_t kLongestNumber = 20;

struct Range {
  std::uint64_t low = 0, high = 0;
  std::size_t width = 0;
  std::uint64_t size() const { return high - low + 1; }
};

// One list of hosts, and where in it the reader is.
class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  std::vector<std::string> hosts() {
    while (skip_separators()) {
      std::vector<std::string> names{""};
      bool bracket = false;
      while (at_ < text_.size() && !is_separator(text_[at_])) {
        bracket = text_[at_] == '[';
        names = bracket ? times(names, ranges()) : plus(std::move(names), literal());
        if (names.size() + hosts_.size() > kMaxHosts) fail_size();
      }
      if (!bracket && names.size() > 1) fail("text after the last bracket");
      hosts_.insert(hosts_.end(), names.begin(), names.end());
    }
    return std::move(hosts_);
  }

  std::vector<int> counts() {
    std::vector<int> all;
    while (skip_separators()) {
      auto count = number();
      std::uint64_t times = 1;
      if (eat('(')) {
        if (!eat('x')) fail("'x' expected after '('");
        times = number();
        if (!eat(')')) fail("')' expected");
      }
      if (at_ < text_.size() && !is_separator(text_[at_])) fail("unexpected character");
      if (times > kMaxHosts || all.size() + times > kMaxHosts || count > kMaxHosts) fail_size();
      all.insert(all.end(), times, static_cast<int>(count));
    }
    return all;
  }

 private:
  [[noreturn]] void fail(const std::string& why) const {
    constexpr std::size_t kShown = 200;
    throw ConfigError("'" + std::string(text_.substr(0, kShown)) + (text_.size() > kShown ? "…" : "") +
                      "' is not a valid SLURM host list: " + why + " at character " + std::to_string(at_ + 1) +
                      ". Valid is for instance gpu-[08-09],n[1-3,7]");
  }
  [[noreturn]] void fail_size() const { fail("more than " + std::to_string(kMaxHosts) + " entries"); }

  bool eat(char c) {
    bool there = at_ < text_.size() && text_[at_] == c;
    at_ += there;
    return there;
  }
  void skip_blanks() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t')) ++at_;
  }
  bool skip_separators() {
    while (at_ < text_.size() && is_separator(text_[at_])) ++at_;
    return at_ < text_.size();
  }
  std::uint64_t number() {
    std::uint64_t value = 0;
    const char* begin = text_.data() + at_;
    auto [end, code] = std::from_chars(begin, text_.data() + text_.size(), value);
    if (code == std::errc::result_out_of_range) fail("a number that is too large");
    if (code != std::errc()) fail("a number was expected");
    at_ += end - begin;
    return value;
  }

  std::string literal() {
    std::size_t begin = at_;
    while (at_ < text_.size() && text_[at_] != '[' && !is_separator(text_[at_])) {
      if (text_[at_] == ']') fail("']' without '['");
      ++at_;
    }
    return std::string(text_.substr(begin, at_ - begin));
  }

  Range range() {
    Range range;
    std::size_t begin = at_;
    range.low = range.high = number();
    range.width = at_ - begin;
    if (range.width > kLongestNumber) fail("a number that is too long");
    if (eat('-')) range.high = number();
    if (range.high < range.low) fail("a range that runs backwards");
    if (range.high - range.low >= kMaxHosts) fail_size();
    return range;
  }

  std::vector<Range> ranges() {
    std::vector<Range> all;
    ++at_;
    do {
      if (!all.empty()) skip_blanks();
      all.push_back(range());
    } while (eat(','));
    if (!eat(']')) fail("']' expected");
    return all;
  }

  static std::vector<std::string> plus(std::vector<std::string> names, const std::string& text) {
    for (auto& name : names) name += text;
    return names;
  }

  std::vector<std::string> times(const std::vector<std::string>& names, const std::vector<Range>& ranges) const {
    std::uint64_t count = 0;
    for (const auto& range : ranges) count += range.size();
    if (count * names.size() > kMaxHosts) fail_size();
    std::vector<std::string> all;
    all.reserve(count * names.size());
    for (const auto& name : names)
      for (const auto& range : ranges)
        for (auto value = range.low; value - range.low < range.size(); ++value) {
          auto digits = std::to_string(value);
          all.push_back(name + std::string(range.width > digits.size() ? range.width - digits.size() : 0, '0') +
                        digits);
        }
    return all;
  }

  std::string_view text_;
  std::size_t at_ = 0;
  std::vector<std::string> hosts_;
};

}  // namespace

std::vector<std::string> expand_hostlist(const std::string& text) { return Parser(text).hosts(); }

std::vector<int> expand_counts(const std::string& text) { return Parser(text).counts(); }

}  // namespace fabric

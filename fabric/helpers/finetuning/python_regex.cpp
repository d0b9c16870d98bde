#include <fabric/helpers/finetuning/python_regex_internal.h>

#include <algorithm>
#include <cctype>
#include <locale>
#include <string_view>

#include <fabric/base/error.h>

namespace fabric {
namespace {

constexpr std::size_t kLongestPattern = 1000;
constexpr double kMostRepetitions = 10000;  // of nested counts, multiplied

// Rewrites a pattern into the dialect of std::regex, and refuses what that dialect reads otherwise or not at all.
class Translator {
 public:
  explicit Translator(const std::string& pattern) : pattern_(pattern) {}

  std::string run() {
    if (pattern_.size() > kLongestPattern) fail("it has more than " + std::to_string(kLongestPattern) + " characters");
    if (rest().starts_with("(?i)")) {
      ignore_case_ = true;
      at_ = 4;
    }
    while (at_ < pattern_.size()) translate_one();
    if (open_groups_ > 0) fail("a '(' is not closed");
    return std::move(out_);
  }
  bool ignore_case() const { return ignore_case_; }

 private:
  [[noreturn]] void fail(const std::string& why) const {
    throw ConfigError("the pattern '" + pattern_.substr(0, 80) + "' cannot be used (at character " +
                      std::to_string(at_ + 1) + "): " + why);
  }
  std::string_view rest() const { return std::string_view(pattern_).substr(at_); }
  char peek(std::size_t ahead = 0) const { return at_ + ahead < pattern_.size() ? pattern_[at_ + ahead] : '\0'; }

  void translate_one() {
    switch (char c = peek()) {
      case '\\':
        return escape(/*in_class=*/false);
      case '[':
        return character_class();
      case '(':
        return group();
      case ')':
        if (--open_groups_ < 0) fail("a ')' has no '('");
        return emit(")", true);
      case '*':
      case '+':
      case '?':
        return quantifier(std::string(1, c), 1);
      case '{':
        return braces();
      case '|':
      case '^':
      case '$':
        return emit(std::string(1, c), false);
      case '}':
      case ']':
        return emit(std::string("\\") + c, true);
      case '\0':
        fail("it holds a null character");
      default:
        return emit(std::string(1, c), true);
    }
  }

  void emit(const std::string& text, bool can_repeat, std::size_t consumed = 1) {
    out_ += text;
    at_ += consumed;
    can_repeat_ = can_repeat;
    repeated_ = false;
  }

  void escape(bool in_class) {
    char c = peek(1);
    if (c == '\0') fail("it ends in a backslash");
    if (c == 'A' && !in_class) return emit("^", false, 2);
    if (c == 'Z' && !in_class) return emit("$", false, 2);
    if (c == 'a') return emit("\\x07", true, 2);
    if (c >= '1' && c <= '9') fail("back-references are not supported; write out what the group matches");
    const bool letter = std::isalpha(static_cast<unsigned char>(c)) != 0;
    const std::string_view known = in_class ? "dDwWsSbnrtfvx" : "dDwWsSbBnrtfvx";
    if (letter && known.find(c) == std::string_view::npos) fail(std::string("\\") + c + " is not an escape");
    if (c == 'x' &&
        (!std::isxdigit(static_cast<unsigned char>(peek(2))) || !std::isxdigit(static_cast<unsigned char>(peek(3)))))
      fail("\\x needs two hexadecimal digits");
    emit(std::string("\\") + c, c != 'b' && c != 'B', 2);
  }

  void character_class() {
    emit("[", true);
    if (peek() == '^') emit("^", true);
    if (peek() == ']') emit("\\]", true);  // a bracket in first place is a plain character
    while (peek() != ']') {
      if (peek() == '\0') fail("a '[' is not closed");
      if (peek() == '\\')
        escape(/*in_class=*/true);
      else
        emit(peek() == '[' ? "\\[" : std::string(1, peek()), true);
    }
    emit("]", true);
  }

  void group() {
    if (!rest().starts_with("(?")) {
      ++open_groups_;
      return emit("(", false);
    }
    if (rest().starts_with("(?#")) {
      std::size_t end = pattern_.find(')', at_);
      if (end == std::string::npos) fail("a comment '(?#' is not closed");
      at_ = end + 1;
      return;
    }
    for (std::string_view kept : {"(?:", "(?=", "(?!"})
      if (rest().starts_with(kept)) {
        ++open_groups_;
        return emit(std::string(kept), false, kept.size());
      }
    if (rest().starts_with("(?P<")) {
      std::size_t end = pattern_.find('>', at_);
      if (end == std::string::npos || end == at_ + 4) fail("a named group is written (?P<name>…)");
      ++open_groups_;
      return emit("(", false, end + 1 - at_);
    }
    if (rest().starts_with("(?<")) fail("lookbehind is not supported; the entry is matched from the start of a name");
    if (rest().starts_with("(?P=")) fail("back-references are not supported; write out what the group matches");
    fail("only (…), (?:…), (?P<name>…), (?=…), (?!…), (?#…) and a leading (?i) are supported");
  }

  // {m}, {m,}, {,n} and {m,n}; any other brace is a plain character, as in Python.
  void braces() {
    std::size_t end = pattern_.find('}', at_);
    std::string inner = end == std::string::npos ? "" : pattern_.substr(at_ + 1, end - at_ - 1);
    std::size_t comma = inner.find(',');
    std::string low = inner.substr(0, comma), high = comma == std::string::npos ? low : inner.substr(comma + 1);
    auto all_digits = [](const std::string& text) {
      return std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isdigit(c); });
    };
    const bool counts = !inner.empty() && all_digits(low) && all_digits(high) && !(low.empty() && high.empty());
    if (!counts) return emit("\\{", true);
    if (low.size() > 4 || high.size() > 4) fail("a count above 9999");
    const int least = low.empty() ? 0 : std::stoi(low), most = high.empty() ? least + 1 : std::stoi(high);
    if (most < least) fail("the first count of {m,n} is larger than the second");
    repetitions_ *= std::max(1, most);
    if (repetitions_ > kMostRepetitions) fail("its counts multiply to more than 10000 repetitions");
    quantifier("{" + std::to_string(least) + (comma == std::string::npos ? "" : "," + high) + "}", end + 1 - at_);
  }

  void quantifier(const std::string& text, std::size_t consumed) {
    if (repeated_) fail("a quantifier follows a quantifier");
    if (!can_repeat_) fail("there is nothing to repeat before '" + text + "'; for any text write .*");
    emit(text, false, consumed);
    if (peek() == '?') emit("?", false);
    if (peek() == '+') fail("possessive quantifiers are not supported; leave out the second sign");
    repeated_ = true;
  }

  const std::string& pattern_;
  std::string out_;
  std::size_t at_ = 0;
  int open_groups_ = 0;
  double repetitions_ = 1;
  bool can_repeat_ = false;
  bool repeated_ = false;
  bool ignore_case_ = false;
};

}  // namespace

PythonRegex::PythonRegex(const std::string& pattern) {
  Translator translator(pattern);
  std::string translated = translator.run();
  auto flags = std::regex::ECMAScript | std::regex::nosubs | std::regex::optimize;
#ifdef __GLIBCXX__
  flags |= std::regex_constants::__polynomial;  // an automaton, without the back-tracking that some patterns blow up
#endif
  if (translator.ignore_case()) flags |= std::regex::icase;
  regex_.imbue(std::locale::classic());
  try {
    regex_.assign(translated, flags);
  } catch (const std::regex_error& error) {
    throw ConfigError("the pattern '" + pattern.substr(0, 80) + "' cannot be used: " + error.what());
  }
}

bool PythonRegex::matches_start_of(const std::string& text) const {
  return std::regex_search(text, regex_, std::regex_constants::match_continuous);
}

}  // namespace fabric

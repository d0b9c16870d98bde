#pragma once

#include <regex>
#include <string>

#include <fabric/export.h>

namespace fabric {

/// A regular expression in the dialect of Python's `re`, tested against the start of a text as `re.match` does: the
/// part of the dialect that schedules are written in. There are groups (plain, `(?:…)`, named), alternation, classes,
/// all quantifiers with their lazy forms, lookahead, `^ $ \A \Z \b \d \w \s`, comments and a leading `(?i)`. There are
/// no lookbehind, back-references, conditions, flags in the middle, atomic groups and possessive quantifiers.
/// Matching takes time linear in the text, whatever the pattern.
class FABRIC_API PythonRegex {
 public:
  /// Throws ConfigError naming the pattern, the place and what to write instead.
  explicit PythonRegex(const std::string& pattern);
  bool matches_start_of(const std::string& text) const;

 private:
  std::regex regex_;
};

}  // namespace fabric

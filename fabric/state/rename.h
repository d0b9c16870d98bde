#pragma once

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include <fabric/base/value.h>

namespace fabric {

/// Every place in a name that `pattern` finds becomes `replacement`: {"^encoder\\.(.*)", "backbone.$1"}. Both are those
/// of ECMAScript; `$1` is what the first brackets found, `$&` all that was found.
struct RenameRule {
  std::string pattern;
  std::string replacement;
};
/// All in turn: each rule is given the name that those before it made.
using RenameRules = std::vector<RenameRule>;

/// Gives names by rules. A pattern may take time that grows fast with the length of a name: patterns are the user's
/// own, and names have at most `kLongestName` bytes.
class FABRIC_API Renamer {
 public:
  static constexpr std::size_t kLongestName = 1024;

  /// Throws ConfigError with the pattern where one is no regular expression.
  explicit Renamer(const RenameRules& rules);
  ~Renamer();
  Renamer(const Renamer&) = delete;
  Renamer& operator=(const Renamer&) = delete;
  /// Throws CheckpointKeyError for a name that is too long or that nothing is left of, ConfigError where a pattern
  /// asks for more than can be searched.
  std::string operator()(const std::string& name);
  /// The patterns that found nothing in any name so far.
  std::vector<std::string> unused() const;

 private:
  struct Rule;
  std::vector<Rule> rules_;
};

/// What renaming made of a checkpoint.
struct RenamedValue {
  Value value;
  /// The name that each renamed tensor had, by the one that it has now.
  std::unordered_map<std::string, std::string> originals;
};

/// Gives the tensors of a nested value the names that the rules make of theirs: the dotted paths that lead to them.
/// Nothing but tensors is renamed. A tensor stays as many maps deep as it was: in the maps that its new name still
/// leads through, else in new ones, each named by one word. Throws CheckpointKeyError with both names where two become
/// one, and for a new name of what lies in a list.
FABRIC_API RenamedValue rename_tensors(Value value, Renamer& rename);

/// An error's text with "('OLD' in the checkpoint)" behind every renamed name in quotes; names in the text begin below
/// `prefix`.
FABRIC_API std::string with_original_names(std::string_view text, const std::string& prefix,
                                           const std::unordered_map<std::string, std::string>& originals);

}  // namespace fabric

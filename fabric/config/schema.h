#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <fabric/base/error.h>
#include <fabric/base/tree.h>
#include <fabric/export.h>

namespace fabric {

/// What a settings type looks like, without the type: what the command line, --help and the origins work on.
struct FABRIC_API Schema {
  enum class Kind { boolean, integer, number, text, names, list, map, structure, variant, choice, any };
  /// Not a reference, so that a struct may hold a list of its own kind.
  using Ref = const Schema& (*)();
  struct Field {
    std::string name = {};
    std::string help = {};
    Ref schema = nullptr;
    /// May change in any release.
    bool experimental = false;
    /// The version that deprecated it, and what to use instead; empty: it stays.
    std::string deprecated_since = {};
    std::string advice = {};

    /// The help text with what `experimental` and `deprecated_since` say.
    std::string full_help() const;
  };
  /// A field's name of former times.
  struct Renamed {
    std::string from;
    std::string to;
    std::string since;
  };

  Kind kind = Kind::any;
  /// May be null: std::optional.
  bool nullable = false;
  /// Of `names` (an enum) and `variant`: what may be written.
  std::vector<std::string> names = {};
  /// Of `structure`.
  std::vector<Field> fields = {};
  std::vector<Renamed> renamed = {};
  /// Of `variant`: a structure for each of `names`.
  std::vector<Ref> alternatives = {};
  /// Of `list` and `map`.
  Ref element = nullptr;

  const Field* find(std::string_view name) const;
  Field* find(std::string_view name);
  std::vector<std::string> field_names() const;
  /// For people: "int", "list of float", "adamw|sgd".
  std::string type_name() const;
};

namespace detail {

/// An error about one entry; whoever knows where the entry came from adds that.
class FABRIC_API FieldError : public ConfigError {
 public:
  FieldError(std::string path, const std::string& what);
  const std::string& path() const noexcept { return path_; }
  const std::string& reason() const noexcept { return reason_; }

 private:
  std::string path_;
  std::string reason_;
};

[[noreturn]] FABRIC_API void fail_kind(const std::string& path, const Tree& given, const std::string& wanted);
[[noreturn]] FABRIC_API void fail_name(const std::string& path, std::string_view given,
                                       const std::vector<std::string>& valid);
/// Throws FieldError unless `tree` is a map with no other keys than `valid`.
FABRIC_API void check_keys(const Tree& tree, const std::string& path, const std::vector<std::string>& valid);
/// `layer` with former names replaced by those of today, with a warning for each. Throws FieldError for a setting that
/// is given under both.
FABRIC_API Tree with_current_names(const Schema& schema, const Tree& layer, const std::string& path);
/// Says of each experimental or deprecated field what it is, if `after` has another value for it than `before`.
FABRIC_API void warn_of_marks(const Schema& schema, const Tree& before, const Tree& after, const std::string& path);
FABRIC_API bool read_bool(const Tree& tree, const std::string& path);
FABRIC_API std::int64_t read_signed(const Tree& tree, const std::string& path, std::int64_t least, std::int64_t most);
FABRIC_API std::uint64_t read_unsigned(const Tree& tree, const std::string& path, std::uint64_t most);
/// Finite numbers must not be beyond `most`.
FABRIC_API double read_number(const Tree& tree, const std::string& path, double most);
/// An integer is its digits: `precision: 32` means the name 32.
FABRIC_API std::string read_text(const Tree& tree, const std::string& path);
/// What `null` gives a setting that is not std::optional: its default, where that is a name, a text, a list or a map.
FABRIC_API bool null_is_default(const Schema& schema);
/// Whether one value stands for a list of one: where the items are names or texts, as in `loggers: csv`.
FABRIC_API bool is_list_of_one(const Schema& element, const Tree& tree);
/// The name given to a variant, and the settings beside it; no name at all leaves `name` empty.
FABRIC_API void read_named(const Tree& tree, const std::string& path, std::string& name, Tree& settings);
FABRIC_API Tree unsigned_tree(std::uint64_t value);
FABRIC_API Tree float_tree(float value);
/// Path of an entry below `path`.
FABRIC_API std::string below(const std::string& path, std::string_view key);

}  // namespace detail
}  // namespace fabric

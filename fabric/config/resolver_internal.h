#pragma once

#include <optional>

#include <fabric/base/tree_io.h>
#include <fabric/config.h>

namespace fabric::detail {

struct RecipeText {
  std::string name;
  std::string description;
};
std::vector<RecipeText> recipe_texts(const std::type_info& type);

/// A setting as flags see it.
struct FlagTarget {
  const Schema* schema = nullptr;
  /// In a map or among the settings of a registry's choice, where any key goes; `schema` may be missing then.
  bool dynamic = false;
};
/// The path with former names replaced by those of today; the same path where none is in it. `above` leads to `schema`.
std::string current_flag(const Schema& schema, const std::string& path, const std::string& above = "");
/// `layer` of a file with former names replaced, at every depth. `lines` gets the lines of the new paths.
Tree with_current_names_below(const Schema& schema, const Tree& layer, const std::string& path, TreeLines& lines);
/// What `path` of a flag leads to; nothing when there is no such setting in any alternative.
std::optional<FlagTarget> find_flag(const Schema& schema, std::string_view path);
/// Every flag that --help lists, with the help text, in order.
struct FlagText {
  std::string path;
  std::string help;
  /// The alternatives that have it; empty when it is always there.
  std::string with;
  const Schema* schema = nullptr;
};
std::vector<FlagText> list_flags(const Schema& schema);
bool is_bool_word(std::string_view text, bool& value);
/// The change that a flag asks for. `values` are the settings so far, `texts` what was given, once or repeatedly.
Tree flag_layer(const Schema& schema, const Tree& values, const std::string& path,
                const std::vector<std::string>& texts);

/// Puts settings together out of defaults, recipe, files and flags, and remembers where each value came from.
class Resolver {
 public:
  explicit Resolver(const ConfigOps& ops) : ops_(ops), values_(ops.defaults()) {}
  Resolver(const ConfigOps& ops, Tree values) : ops_(ops), values_(std::move(values)) {}

  void apply_recipe(const std::string& name);
  void apply_file(const std::string& path);
  void apply_flag(const std::string& path, const std::vector<std::string>& texts);
  /// A map of settings that came from elsewhere. Errors begin with `origin`.
  void apply_layer(const Tree& layer, const std::string& origin);

  const Tree& values() const { return values_; }
  const Origins& origins() const { return origins_; }
  /// YAML with the origin of each value in a comment.
  std::string print() const;

 private:
  void set_origin(const std::string& path, const std::string& origin);
  void forget_below(const std::string& path);
  void mark_changes(const Tree& before, const Tree& after, const std::string& path, const std::string& origin);
  template <class OriginOf>
  void mark(const Schema& schema, const Tree* before, const Tree& layer, const std::string& path,
            const OriginOf& origin_of);

  const ConfigOps& ops_;
  Tree values_;
  Origins origins_;
};

/// YAML of `values`; the origin of a value is that of its path or else of the nearest path above.
std::string print_with_origins(const Tree& values, const Origins& origins);

}  // namespace fabric::detail

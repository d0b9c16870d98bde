#pragma once

#include <functional>
#include <map>
#include <string>
#include <typeinfo>
#include <vector>

#include <fabric/config.h>
#include <fabric/config/codec_composite.h>

namespace fabric {

/// Dotted path of a setting to where its value came from: "recipe NAME", "FILE:LINE" or "command line". Paths that are
/// missing have their default.
using Origins = std::map<std::string, std::string, std::less<>>;

/// One setting that differs.
struct FABRIC_API ConfigChange {
  std::string path;
  Tree before;
  Tree after;
  /// "lr: 0.001 -> 0.01".
  std::string to_string() const;
};

/// How a command line is read.
struct ParseOptions {
  /// What the program does; the first lines of --help.
  std::string description;
  /// Off: words that are no setting are an error.
  bool positionals = false;
};

/// What parse_or_throw found.
template <class Config>
struct Parsed {
  Config config;
  Origins origins;
  std::vector<std::string> positionals;
  /// Not empty after --help and --print-config: to be printed instead of running. `config` is then not validated.
  std::string output;
};

namespace detail {

struct ConfigOps {
  const std::type_info* type;
  Schema::Ref schema;
  Tree (*defaults)();
  Tree (*update)(const Tree& values, const Tree& layer);
};
struct ParsedTree {
  Tree values;
  Origins origins;
  std::vector<std::string> positionals;
  std::string output;
};
FABRIC_API ParsedTree parse_command_line(const ConfigOps& ops, int argc, const char* const* argv,
                                         const ParseOptions& options);
FABRIC_API Tree load_layer(const std::string& path, const Tree& values, const ConfigOps& ops);
FABRIC_API bool trees_equal(const Tree& a, const Tree& b);
FABRIC_API std::vector<ConfigChange> tree_diff(const Tree& a, const Tree& b);
FABRIC_API void add_recipe(const std::type_info& type, const std::string& name, const std::string& description,
                           std::function<Tree()> make);
FABRIC_API Tree make_recipe(const std::type_info& type, const std::string& name);
FABRIC_API std::vector<std::string> recipe_names(const std::type_info& type);
[[noreturn]] FABRIC_API void print_and_exit(const std::string& output);
[[noreturn]] FABRIC_API void refuse_and_exit(const char* program, const ConfigError& error);

// Changes of `config`, without the cross-field checks.
template <class Config>
Config with_layer(Config config, const Tree& layer) {
  Codec<Config>::update(config, layer, "");
  return config;
}
template <class Config>
const ConfigOps& ops_of() {
  static const ConfigOps ops = {&typeid(Config), &schema_of<Config>, [] { return Codec<Config>::to(Config{}); },
                                [](const Tree& values, const Tree& layer) {
                                  return Codec<Config>::to(with_layer(with_layer(Config{}, values), layer));
                                }};
  return ops;
}

}  // namespace detail

/// `base` with what `tree` gives, checked. Throws ConfigError naming the path for unknown keys and bad values.
template <class Config>
Config from_tree(const Tree& tree, Config base = {}) {
  detail::Codec<Config>::update(base, tree, "");
  detail::Codec<Config>::validate(base, "");
  return base;
}
/// All settings. write_yaml(to_tree(config)) is a file that load_config turns into an equal config.
template <detail::HasFields Config>
Tree to_tree(const Config& config) {
  return detail::Codec<Config>::to(config);
}
/// `base` with what a .yaml, .yml or .json file gives. Throws ConfigError naming file, line and path.
template <class Config>
Config load_config(const std::string& path, const Config& base = {}) {
  return from_tree<Config>(detail::load_layer(path, detail::Codec<Config>::to(base), detail::ops_of<Config>()), base);
}

/// Runs the cross-field checks, those of nested structs first.
template <class Config>
void validate_config(const Config& config) {
  detail::Codec<Config>::validate(config, "");
}
/// True when all settings are equal; NaN equals NaN.
template <class Config>
bool config_equal(const Config& a, const Config& b) {
  return detail::trees_equal(detail::Codec<Config>::to(a), detail::Codec<Config>::to(b));
}
/// The settings that differ, in the order of the fields.
template <class Config>
std::vector<ConfigChange> config_diff(const Config& before, const Config& after) {
  return detail::tree_diff(detail::Codec<Config>::to(before), detail::Codec<Config>::to(after));
}

/// Makes settings available as `--recipe NAME` of the programs that parse a Config. `make` returns a Config; it may
/// call recipe<Config>("other") and change fields. Throws ConfigError for a name that is taken.
template <class Config, class Make>
bool register_recipe(const std::string& name, Make make, const std::string& description = "") {
  detail::add_recipe(typeid(Config), name, description, [make] { return detail::Codec<Config>::to(make()); });
  return true;
}
/// The settings of a recipe. Throws ConfigError naming the nearest one when there is none of that name.
template <class Config>
Config recipe(const std::string& name) {
  return detail::with_layer(Config{}, detail::make_recipe(typeid(Config), name));
}
template <class Config>
std::vector<std::string> recipe_names() {
  return detail::recipe_names(typeid(Config));
}

/// The settings that a command line gives: the recipe, then the files in the order of --config, then the flags. Throws
/// ConfigError for all that is wrong with them.
template <class Config>
Parsed<Config> parse_or_throw(int argc, const char* const* argv, const ParseOptions& options = {}) {
  detail::ParsedTree found = detail::parse_command_line(detail::ops_of<Config>(), argc, argv, options);
  Parsed<Config> parsed{detail::with_layer(Config{}, found.values), std::move(found.origins),
                        std::move(found.positionals), std::move(found.output)};
  if (parsed.output.empty()) detail::Codec<Config>::validate(parsed.config, "");
  return parsed;
}
/// parse_or_throw for `main`: prints what is wrong and exits with 2; exits with 0 after --help and --print-config.
template <class Config>
Config parse(int argc, const char* const* argv, const ParseOptions& options = {}) {
  try {
    auto parsed = parse_or_throw<Config>(argc, argv, options);
    if (parsed.output.empty()) return std::move(parsed.config);
    detail::print_and_exit(parsed.output);
  } catch (const ConfigError& error) {
    detail::refuse_and_exit(argc > 0 ? argv[0] : "", error);
  }
}

}  // namespace fabric

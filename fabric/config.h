#pragma once

#include <string>
#include <string_view>

#include <fabric/base/error.h>
#include <fabric/base/tree.h>
#include <fabric/export.h>

/// Lists the fields of a settings struct, once: FABRIC_FIELDS(Config, epochs, lr, fabric). The list drives command
/// line, YAML, JSON, --help, dump and comparison. Field types: bool, integers, float, double, std::string, paths,
/// std::optional, std::vector, std::map<std::string, T>, Tree, enums with FABRIC_ENUM, other structs with fields,
/// std::variant of such structs (each with `static constexpr std::string_view kName`), and any type with `static T
/// from_tree(const Tree&)` and `Tree to_tree() const`. A struct's `void validate() const` checks what spans fields; its
/// ConfigError gets the path.
#define FABRIC_FIELDS(Self, ...)                      \
  template <class Visitor>                            \
  static void fabric_fields(Visitor&& fabric_visit) { \
    using FabricSelf = Self;                          \
    FABRIC_FOR_EACH_(FABRIC_FIELD_, __VA_ARGS__)      \
  }
#define FABRIC_FIELD_(field) fabric_visit(#field, &FabricSelf::field);

/// Optional, beside FABRIC_FIELDS: texts for --help. FABRIC_HELP(Config, (epochs, "passes over the data"), (lr, "step
/// size"))
#define FABRIC_HELP(Self, ...)                      \
  template <class Visitor>                          \
  static void fabric_help(Visitor&& fabric_visit) { \
    using FabricSelf = Self;                        \
    FABRIC_FOR_EACH_(FABRIC_HELP_, __VA_ARGS__)     \
  }
#define FABRIC_HELP_(pair) FABRIC_HELP_PAIR_ pair
#define FABRIC_HELP_PAIR_(field, text) fabric_visit(#field, text, &FabricSelf::field);

/// Optional, beside FABRIC_FIELDS: settings that were renamed, with the version that did so. Files and flags may use
/// the old name for two more minor versions; a warning says the new one. FABRIC_RENAMED(Config, (learning_rate, lr,
/// "0.3"))
#define FABRIC_RENAMED(Self, ...)                      \
  template <class Visitor>                             \
  static void fabric_renamed(Visitor&& fabric_visit) { \
    using FabricSelf = Self;                           \
    FABRIC_FOR_EACH_(FABRIC_RENAMED_, __VA_ARGS__)     \
  }
#define FABRIC_RENAMED_(entry) FABRIC_RENAMED_ENTRY_ entry
#define FABRIC_RENAMED_ENTRY_(old_name, field, since) fabric_visit(#old_name, #field, since, &FabricSelf::field);

/// Optional, beside FABRIC_FIELDS: settings that will go, the version that said so, and what to use. --help shows it,
/// and who changes one is warned. FABRIC_DEPRECATED_FIELDS(Config, (shuffle, "0.3", "use sampler"))
#define FABRIC_DEPRECATED_FIELDS(Self, ...)                 \
  template <class Visitor>                                  \
  static void fabric_deprecated(Visitor&& fabric_visit) {   \
    using FabricSelf = Self;                                \
    FABRIC_FOR_EACH_(FABRIC_DEPRECATED_FIELD_, __VA_ARGS__) \
  }
#define FABRIC_DEPRECATED_FIELD_(entry) FABRIC_DEPRECATED_FIELD_ENTRY_ entry
#define FABRIC_DEPRECATED_FIELD_ENTRY_(field, since, advice) fabric_visit(#field, since, advice, &FabricSelf::field);

/// Optional, beside FABRIC_FIELDS: settings that may change in any release; all others are stable. --help marks them,
/// and who changes one is told. FABRIC_EXPERIMENTAL_FIELDS(Config, overlap, lanes)
#define FABRIC_EXPERIMENTAL_FIELDS(Self, ...)               \
  template <class Visitor>                                  \
  static void fabric_experimental(Visitor&& fabric_visit) { \
    using FabricSelf = Self;                                \
    FABRIC_FOR_EACH_(FABRIC_FIELD_, __VA_ARGS__)            \
  }

/// Names an enum's values, in the namespace where the enum is: FABRIC_ENUM(Color, red, green). A trailing underscore,
/// for names that are keywords of C++, is not written: `auto_` is `auto` in files and on the command line.
#define FABRIC_ENUM(Enum, ...)                      \
  template <class Visitor>                          \
  void fabric_enum(Enum*, Visitor&& fabric_visit) { \
    using FabricEnum = Enum;                        \
    FABRIC_FOR_EACH_(FABRIC_ENUM_, __VA_ARGS__)     \
  }
#define FABRIC_ENUM_(value) fabric_visit(#value, FabricEnum::value);

// The preprocessor's way of a loop: up to 256 rounds.
#define FABRIC_PARENS_ ()
#define FABRIC_EXPAND_(...) FABRIC_EXPAND3_(FABRIC_EXPAND3_(FABRIC_EXPAND3_(FABRIC_EXPAND3_(__VA_ARGS__))))
#define FABRIC_EXPAND3_(...) FABRIC_EXPAND2_(FABRIC_EXPAND2_(FABRIC_EXPAND2_(FABRIC_EXPAND2_(__VA_ARGS__))))
#define FABRIC_EXPAND2_(...) FABRIC_EXPAND1_(FABRIC_EXPAND1_(FABRIC_EXPAND1_(FABRIC_EXPAND1_(__VA_ARGS__))))
#define FABRIC_EXPAND1_(...) __VA_ARGS__
#define FABRIC_FOR_EACH_(macro, ...) __VA_OPT__(FABRIC_EXPAND_(FABRIC_FOR_EACH_STEP_(macro, __VA_ARGS__)))
#define FABRIC_FOR_EACH_STEP_(macro, first, ...) \
  macro(first) __VA_OPT__(FABRIC_FOR_EACH_AGAIN_ FABRIC_PARENS_(macro, __VA_ARGS__))
#define FABRIC_FOR_EACH_AGAIN_() FABRIC_FOR_EACH_STEP_

namespace fabric {

/// A choice out of a registry: a name and the settings of what it names. In files `strategy: ddp` or
/// `strategy: {name: ddp, bucket_cap_mb: 10}`; on the command line `--strategy ddp --strategy.bucket_cap_mb 10`.
struct FABRIC_API Choice {
  Choice() = default;
  Choice(const char* name) : name(name) {}
  Choice(std::string name, Tree::Map params = {}) : name(std::move(name)), params(std::move(params)) {}
  std::string name;
  Tree::Map params;
  bool operator==(const Choice&) const = default;

  static Choice from_tree(const Tree& tree);
  /// As from_tree, but a map without `name` adds to the settings and keeps the name.
  void update_from_tree(const Tree& tree);
  Tree to_tree() const;
};

}  // namespace fabric

#include <fabric/config/parse.h>

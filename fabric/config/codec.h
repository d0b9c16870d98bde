#pragma once

#include <concepts>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include <fabric/config/schema.h>

namespace fabric {

struct Choice;

namespace detail {

template <class T>
concept HasFields = requires {
  T::fabric_fields([](const char*, auto) {});
};
template <class T>
concept HasHelp = requires {
  T::fabric_help([](const char*, const char*, auto) {});
};
template <class T>
concept HasRenamed = requires {
  T::fabric_renamed([](const char*, const char*, const char*, auto) {});
};
template <class T>
concept HasDeprecated = requires {
  T::fabric_deprecated([](const char*, const char*, const char*, auto) {});
};
template <class T>
concept HasExperimental = requires {
  T::fabric_experimental([](const char*, auto) {});
};
template <class T>
concept HasValidate = requires(const T& config) {
  config.validate();
};
template <class T>
concept IsNamedEnum = std::is_enum_v<T> && requires(T* tag) {
  fabric_enum(tag, [](const char*, T) {});
};
template <class T>
concept HasOwnTree = requires(const T& value, const Tree& tree) {
  { T::from_tree(tree) } -> std::same_as<T>;
  { value.to_tree() } -> std::convertible_to<Tree>;
};
/// Paths: made from a string and turned into one.
template <class T>
concept IsPathLike = !HasFields<T> && !HasOwnTree<T> && requires(const T& value, const std::string& text) {
  T(text);
  { value.string() } -> std::same_as<std::string>;
};

/// How a type becomes a tree and back: `schema`, `to`, `update` (changes what the tree gives, keeps the rest) and
/// `validate` (runs the cross-field checks below and in it).
template <class T>
struct Codec {
  static_assert(
      sizeof(T) == 0,
      "this type cannot be a setting: list its fields with FABRIC_FIELDS, its names with FABRIC_ENUM, or give it "
      "`static T from_tree(const Tree&)` and `Tree to_tree() const`");
};

template <class T>
const Schema& schema_of() {
  static const Schema schema = Codec<T>::schema();
  return schema;
}

template <Schema::Kind kKind>
struct LeafCodec {
  static Schema schema() { return {.kind = kKind}; }
  static void validate(const auto&, const std::string&) {}
};

template <>
struct Codec<bool> : LeafCodec<Schema::Kind::boolean> {
  static Tree to(bool value) { return value; }
  static void update(bool& out, const Tree& tree, const std::string& path) { out = read_bool(tree, path); }
};

template <std::integral T>
struct Codec<T> : LeafCodec<Schema::Kind::integer> {
  using Limits = std::numeric_limits<T>;
  static Tree to(T value) {
    if constexpr (std::is_signed_v<T>)
      return value;
    else
      return unsigned_tree(value);
  }
  static void update(T& out, const Tree& tree, const std::string& path) {
    if constexpr (std::is_signed_v<T>)
      out = static_cast<T>(read_signed(tree, path, Limits::min(), Limits::max()));
    else
      out = static_cast<T>(read_unsigned(tree, path, Limits::max()));
  }
};

template <std::floating_point T>
struct Codec<T> : LeafCodec<Schema::Kind::number> {
  static_assert(sizeof(T) <= sizeof(double), "a setting of type long double would lose digits; use double");
  static Tree to(T value) {
    if constexpr (std::same_as<T, float>)
      return float_tree(value);
    else
      return value;
  }
  static void update(T& out, const Tree& tree, const std::string& path) {
    out = static_cast<T>(read_number(tree, path, std::numeric_limits<T>::max()));
  }
};

template <>
struct Codec<std::string> : LeafCodec<Schema::Kind::text> {
  static Tree to(const std::string& value) { return value; }
  static void update(std::string& out, const Tree& tree, const std::string& path) { out = read_text(tree, path); }
};

template <IsPathLike T>
struct Codec<T> : LeafCodec<Schema::Kind::text> {
  static Tree to(const T& value) { return value.string(); }
  static void update(T& out, const Tree& tree, const std::string& path) { out = T(read_text(tree, path)); }
};

template <>
struct Codec<Tree> : LeafCodec<Schema::Kind::any> {
  static Tree to(const Tree& value) { return value; }
  static void update(Tree& out, const Tree& tree, const std::string&) { out = tree; }
};

template <IsNamedEnum T>
struct Codec<T> {
  /// `auto_` is written `auto`.
  static std::string written(std::string name) {
    if (name.ends_with('_')) name.pop_back();
    return name;
  }
  static Schema schema() {
    Schema schema{.kind = Schema::Kind::names};
    fabric_enum(static_cast<T*>(nullptr), [&](const char* name, T) { schema.names.push_back(written(name)); });
    return schema;
  }
  static Tree to(T value) {
    Tree out;
    fabric_enum(static_cast<T*>(nullptr), [&](const char* name, T each) {
      if (each == value && out.is_null()) out = written(name);
    });
    if (out.is_null())
      throw ConfigError("a setting holds an enum value without a name: " +
                        std::to_string(static_cast<std::int64_t>(static_cast<std::underlying_type_t<T>>(value))));
    return out;
  }
  static void update(T& out, const Tree& tree, const std::string& path) {
    const std::vector<std::string>& names = schema_of<T>().names;
    if (!tree.is_string()) fail_kind(path, tree, "one of " + schema_of<T>().type_name());
    bool found = false;
    fabric_enum(static_cast<T*>(nullptr), [&](const char* name, T each) {
      if (written(name) == tree.as_string()) out = each, found = true;
    });
    if (!found) fail_name(path, tree.as_string(), names);
  }
  static void validate(const T&, const std::string&) {}
};

template <HasOwnTree T>
requires(!HasFields<T>) struct Codec<T> {
  static Schema schema() { return {.kind = std::same_as<T, Choice> ? Schema::Kind::choice : Schema::Kind::any}; }
  static Tree to(const T& value) { return value.to_tree(); }
  static void update(T& out, const Tree& tree, const std::string& path) {
    try {
      if constexpr (requires { out.update_from_tree(tree); })
        out.update_from_tree(tree);
      else
        out = T::from_tree(tree);
    } catch (const FieldError& error) {
      throw FieldError(below(path, error.path()), error.reason());
    } catch (const Error& error) {
      throw FieldError(path, error.what());
    } catch (const std::logic_error& error) {
      // std::stoi and its like.
      throw FieldError(path, std::string("cannot be read: ") + error.what());
    }
  }
  static void validate(const T&, const std::string&) {}
};

}  // namespace detail
}  // namespace fabric

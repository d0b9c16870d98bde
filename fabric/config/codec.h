#pragma once

#include <concepts>
#include <limits>
#include <map>
#include <optional>
#include <type_traits>
#include <utility>
#include <variant>

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
    }
  }
  static void validate(const T&, const std::string&) {}
};

template <class T>
struct Codec<std::optional<T>> {
  static Schema schema() {
    Schema schema = Codec<T>::schema();
    schema.nullable = true;
    return schema;
  }
  static Tree to(const std::optional<T>& value) { return value ? Codec<T>::to(*value) : Tree(); }
  static void update(std::optional<T>& out, const Tree& tree, const std::string& path) {
    if (tree.is_null()) return out.reset();
    Codec<T>::update(out ? *out : out.emplace(), tree, path);
  }
  static void validate(const std::optional<T>& value, const std::string& path) {
    if (value) Codec<T>::validate(*value, path);
  }
};

template <class T, class A>
struct Codec<std::vector<T, A>> {
  static Schema schema() { return {.kind = Schema::Kind::list, .element = &schema_of<T>}; }
  static Tree to(const std::vector<T, A>& value) {
    Tree::List out;
    for (const auto& item : value) out.push_back(Codec<T>::to(item));
    return out;
  }
  static void update(std::vector<T, A>& out, const Tree& tree, const std::string& path) {
    if (!tree.is_list()) fail_kind(path, tree, schema_of<std::vector<T, A>>().type_name());
    std::vector<T, A> read;
    for (const Tree& item : tree.as_list()) {
      T value{};
      Codec<T>::update(value, item, below(path, std::to_string(read.size())));
      read.push_back(std::move(value));
    }
    out = std::move(read);
  }
  static void validate(const std::vector<T, A>& value, const std::string& path) {
    std::size_t i = 0;
    for (const auto& item : value) Codec<T>::validate(item, below(path, std::to_string(i++)));
  }
};

template <class Map, class T>
struct MapCodec {
  static Schema schema() { return {.kind = Schema::Kind::map, .element = &schema_of<T>}; }
  static Tree to(const Map& value) {
    Tree::Map out;
    for (const auto& [key, item] : value) out.append(key, Codec<T>::to(item));
    return out;
  }
  static void update(Map& out, const Tree& tree, const std::string& path) {
    if (!tree.is_map()) fail_kind(path, tree, schema_of<Map>().type_name());
    Map read;
    for (const auto& [key, item] : tree.as_map()) Codec<T>::update(read[key], item, below(path, key));
    out = std::move(read);
  }
  static void validate(const Map& value, const std::string& path) {
    for (const auto& [key, item] : value) Codec<T>::validate(item, below(path, key));
  }
};
template <class T, class... Rest>
struct Codec<std::map<std::string, T, Rest...>> : MapCodec<std::map<std::string, T, Rest...>, T> {};
template <class T>
struct Codec<OrderedMap<T>> : MapCodec<OrderedMap<T>, T> {};

template <HasFields T>
struct Codec<T> {
  static Schema schema() {
    Schema schema{.kind = Schema::Kind::structure};
    T::fabric_fields([&](const char* name, auto member) {
      using Field = std::remove_cvref_t<decltype(std::declval<T&>().*member)>;
      schema.fields.push_back({name, "", &schema_of<Field>});
    });
    if constexpr (HasHelp<T>)
      T::fabric_help([&](const char* name, const char* text, auto) {
        for (auto& field : schema.fields)
          if (field.name == name) field.help = text;
      });
    return schema;
  }
  static Tree to(const T& value) {
    Tree::Map out;
    T::fabric_fields([&](const char* name, auto member) {
      out.append(name, Codec<std::remove_cvref_t<decltype(value.*member)>>::to(value.*member));
    });
    return out;
  }
  static void update(T& out, const Tree& tree, const std::string& path) {
    if (tree.is_null()) return;
    check_keys(tree, path, schema_of<T>().field_names());
    T::fabric_fields([&](const char* name, auto member) {
      if (const Tree* given = tree.find(name))
        Codec<std::remove_cvref_t<decltype(out.*member)>>::update(out.*member, *given, below(path, name));
    });
  }
  static void validate(const T& value, const std::string& path) {
    T::fabric_fields([&](const char* name, auto member) {
      Codec<std::remove_cvref_t<decltype(value.*member)>>::validate(value.*member, below(path, name));
    });
    if constexpr (HasValidate<T>) {
      try {
        value.validate();
      } catch (const ConfigError& error) {
        throw FieldError(path, error.what());
      }
    }
  }
};

template <HasFields... Options>
struct Codec<std::variant<Options...>> {
  using Variant = std::variant<Options...>;
  static Schema schema() {
    Schema schema{.kind = Schema::Kind::variant};
    (schema.names.emplace_back(Options::kName), ...);
    (schema.alternatives.push_back(&schema_of<Options>), ...);
    if ((schema_of<Options>().find("name") || ...))
      throw MisuseError("a setting that is one of several structs: none of them may have a field 'name'");
    return schema;
  }
  static Tree to(const Variant& value) {
    return std::visit(
        []<class Option>(const Option& option) {
          Tree::Map out;
          out.append("name", std::string(Option::kName));
          Tree fields = Codec<Option>::to(option);
          for (auto& [key, item] : fields.as_map()) out.append(key, std::move(item));
          return Tree(std::move(out));
        },
        value);
  }
  static void update(Variant& out, const Tree& tree, const std::string& path) {
    std::string name;
    Tree settings;
    read_named(tree, path, name, settings);
    auto current = std::visit([]<class Option>(const Option&) { return std::string(Option::kName); }, out);
    if (!name.empty() && name != current) {
      const bool found = ((name == Options::kName ? (out = Options{}, true) : false) || ...);
      if (!found) fail_name(path, name, schema_of<Variant>().names);
    }
    std::visit([&]<class Option>(Option& option) { Codec<Option>::update(option, settings, path); }, out);
  }
  static void validate(const Variant& value, const std::string& path) {
    std::visit([&]<class Option>(const Option& option) { Codec<Option>::validate(option, path); }, value);
  }
};

}  // namespace detail
}  // namespace fabric

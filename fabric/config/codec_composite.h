#pragma once

#include <concepts>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <fabric/config/codec.h>

namespace fabric::detail {

// GCC 12 takes members for uninitialised that it destroys when a later member's constructor throws.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
/// What a class of settings holds when nothing is said.
template <class T>
const T& default_of() {
  static const T value{};
  return value;
}
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

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
    const bool one = is_list_of_one(schema_of<T>(), tree);
    if (!tree.is_list() && !one) fail_kind(path, tree, schema_of<std::vector<T, A>>().type_name());
    std::vector<T, A> read;
    const Tree::List given = one ? Tree::List{tree} : tree.as_list();
    for (const Tree& item : given) {
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
    if constexpr (HasRenamed<T>)
      T::fabric_renamed([&](const char* from, const char* to, const char* since, auto) {
        schema.renamed.push_back({from, to, since});
      });
    if constexpr (HasDeprecated<T>)
      T::fabric_deprecated([&](const char* name, const char* since, const char* advice, auto) {
        schema.find(name)->deprecated_since = since;
        schema.find(name)->advice = advice;
      });
    if constexpr (HasExperimental<T>)
      T::fabric_experimental([&](const char* name, auto) { schema.find(name)->experimental = true; });
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
    if constexpr (HasRenamed<T>)
      update_current(out, with_current_names(schema_of<T>(), tree, path), path);
    else
      update_current(out, tree, path);
  }
  static void update_current(T& out, const Tree& tree, const std::string& path) {
    if constexpr (HasDeprecated<T> || HasExperimental<T>) {
      const Tree before = to(out);
      update_fields(out, tree, path);
      warn_of_marks(schema_of<T>(), before, to(out), path);
    } else {
      update_fields(out, tree, path);
    }
  }
  static void update_fields(T& out, const Tree& tree, const std::string& path) {
    check_keys(tree, path, schema_of<T>().field_names());
    T::fabric_fields([&](const char* name, auto member) {
      using Field = std::remove_cvref_t<decltype(out.*member)>;
      const Tree* given = tree.find(name);
      if (!given) return;
      if constexpr (std::default_initializable<T>)
        if (given->is_null() && null_is_default(schema_of<Field>())) {
          out.*member = default_of<T>().*member;
          return;
        }
      Codec<Field>::update(out.*member, *given, below(path, name));
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

}  // namespace fabric::detail

#include <fabric/config/schema.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include <fabric/base/nearest_name.h>
#include <fabric/base/tree_io.h>
#include <fabric/config.h>

#include "fabric/config/scalar_internal.h"

namespace fabric {

const Schema::Field* Schema::find(std::string_view name) const {
  for (const Field& field : fields)
    if (field.name == name) return &field;
  return nullptr;
}

Schema::Field* Schema::find(std::string_view name) {
  for (Field& field : fields)
    if (field.name == name) return &field;
  return nullptr;
}

std::vector<std::string> Schema::field_names() const {
  std::vector<std::string> out;
  for (const Field& field : fields) out.push_back(field.name);
  return out;
}

std::string Schema::type_name() const {
  std::string out;
  switch (kind) {
    case Kind::boolean:
      out = "true|false";
      break;
    case Kind::integer:
      out = "int";
      break;
    case Kind::number:
      out = "float";
      break;
    case Kind::text:
      out = "text";
      break;
    case Kind::list:
      out = "list of " + element().type_name();
      break;
    case Kind::map:
      out = "map of " + element().type_name();
      break;
    case Kind::structure:
      out = "settings";
      break;
    case Kind::choice:
      out = "name";
      break;
    case Kind::any:
      out = "value";
      break;
    case Kind::names:
    case Kind::variant:
      for (const std::string& name : names) (out += out.empty() ? "" : "|") += name;
  }
  return nullable ? out + "|null" : out;
}

Choice Choice::from_tree(const Tree& tree) {
  Choice choice;
  Tree settings;
  detail::read_named(tree, "", choice.name, settings);
  if (!tree.find("name") && tree.is_map()) throw ConfigError("settings without a name; add 'name: …' to them");
  if (settings.is_map()) choice.params = std::move(settings.as_map());
  return choice;
}

void Choice::update_from_tree(const Tree& tree) {
  if (tree.is_map() && !tree.find("name") && !name.empty()) {
    for (const auto& [key, value] : tree.as_map()) params[key] = value;
  } else {
    *this = from_tree(tree);
  }
}

Tree Choice::to_tree() const {
  if (params.empty()) return name;
  Tree::Map out{{"name", name}};
  for (const auto& [key, value] : params)
    if (key != "name") out.append(key, value);
  return out;
}

namespace detail {

FieldError::FieldError(std::string path, const std::string& what)
    : ConfigError(path.empty() ? what : path + ": " + what), path_(std::move(path)), reason_(what) {}

std::string below(const std::string& path, std::string_view key) {
  if (key.empty()) return path;
  return path.empty() ? std::string(key) : path + "." + std::string(key);
}

void fail_kind(const std::string& path, const Tree& given, const std::string& wanted) {
  std::string text;
  if (given.is_string())
    text = shown(given.as_string());
  else if (given.is_list() || given.is_map())
    text = given.kind();
  else
    text = write_json(given);
  std::string hint;
  if (wanted == "text" && (given.is_number() || given.is_bool())) hint = "; put it in quotes: \"" + text + "\"";
  throw FieldError(path, "expected " + wanted + ", given " + text + hint);
}

void fail_name(const std::string& path, std::string_view given, const std::vector<std::string>& valid) {
  throw FieldError(path, "unknown name " + shown(given) + did_you_mean(given, valid));
}

void check_keys(const Tree& tree, const std::string& path, const std::vector<std::string>& valid) {
  if (!tree.is_map()) fail_kind(path, tree, "a map of settings");
  for (const auto& [key, value] : tree.as_map())
    if (std::find(valid.begin(), valid.end(), key) == valid.end())
      throw FieldError(below(path, key), "unknown setting" + did_you_mean(key, valid));
}

bool read_bool(const Tree& tree, const std::string& path) {
  if (!tree.is_bool()) fail_kind(path, tree, "true or false");
  return tree.as_bool();
}

static std::string range_text(const std::string& least, const std::string& most) {
  return "an integer from " + least + " to " + most;
}

std::int64_t read_signed(const Tree& tree, const std::string& path, std::int64_t least, std::int64_t most) {
  if (!tree.is_int() || tree.as_int() < least || tree.as_int() > most)
    fail_kind(path, tree, range_text(std::to_string(least), std::to_string(most)));
  return tree.as_int();
}

std::uint64_t read_unsigned(const Tree& tree, const std::string& path, std::uint64_t most) {
  const std::string wanted = range_text("0", std::to_string(most));
  std::uint64_t value = 0;
  if (tree.is_int() && tree.as_int() >= 0) {
    value = static_cast<std::uint64_t>(tree.as_int());
  } else if (tree.is_string()) {
    // Readers keep integers beyond 63 bits as text; shorter ones were in quotes.
    const std::string& text = tree.as_string();
    auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || value <= std::numeric_limits<std::int64_t>::max())
      fail_kind(path, tree, wanted);
  } else {
    fail_kind(path, tree, wanted);
  }
  if (value > most) fail_kind(path, tree, wanted);
  return value;
}

double read_number(const Tree& tree, const std::string& path, double most) {
  double value = 0;
  if (tree.is_number()) {
    value = tree.as_double();
  } else if (tree.is_string()) {
    // What people write for the values that JSON has no word for, and integers that readers keep as text.
    const std::string& text = tree.as_string();
    const bool digits = text.size() > 18 && text.find_first_not_of("-0123456789") == text.npos;
    if (text == "inf" || text == "Infinity")
      value = std::numeric_limits<double>::infinity();
    else if (text == "-inf" || text == "-Infinity")
      value = -std::numeric_limits<double>::infinity();
    else if (text == "nan" || text == "NaN")
      value = std::numeric_limits<double>::quiet_NaN();
    else if (!digits || !parse_float(text, value))
      fail_kind(path, tree, "a number");
  } else {
    fail_kind(path, tree, "a number");
  }
  if (std::isfinite(value) && std::abs(value) > most) fail_kind(path, tree, "a number up to " + float_text(most));
  return value;
}

std::string read_text(const Tree& tree, const std::string& path) {
  if (tree.is_int()) return std::to_string(tree.as_int());
  if (!tree.is_string()) fail_kind(path, tree, "text");
  return tree.as_string();
}

bool null_is_default(const Schema& schema) {
  using Kind = Schema::Kind;
  if (schema.nullable) return false;
  switch (schema.kind) {
    case Kind::text:
    case Kind::names:
    case Kind::list:
    case Kind::map:
    case Kind::variant:
    case Kind::choice:
      return true;
    default:
      return false;
  }
}

bool is_list_of_one(const Schema& element, const Tree& tree) {
  using Kind = Schema::Kind;
  const bool named = element.kind == Kind::choice || element.kind == Kind::variant;
  if (tree.is_map()) return named;
  return (tree.is_string() || tree.is_int()) && (named || element.kind == Kind::text || element.kind == Kind::names);
}

void read_named(const Tree& tree, const std::string& path, std::string& name, Tree& settings) {
  settings = Tree::Map();
  if (tree.is_string() || tree.is_int()) {
    name = read_text(tree, path);
    return;
  }
  if (!tree.is_map()) fail_kind(path, tree, "a name, or a map with 'name' and settings");
  for (const auto& [key, value] : tree.as_map()) {
    if (key == "name")
      name = read_text(value, below(path, key));
    else
      settings.as_map().append(key, value);
  }
}

Tree unsigned_tree(std::uint64_t value) {
  if (value <= std::numeric_limits<std::int64_t>::max()) return static_cast<std::int64_t>(value);
  return std::to_string(value);
}

Tree float_tree(float value) {
  // By way of the shortest text: 0.1f becomes 0.1 and not 0.10000000149011612, and still gives the same float.
  double wide = value;
  char buffer[32];
  if (std::isfinite(value)) std::from_chars(buffer, std::to_chars(buffer, buffer + sizeof buffer, value).ptr, wide);
  return wide;
}

}  // namespace detail
}  // namespace fabric

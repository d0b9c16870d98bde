#include <algorithm>

#include <fabric/base/nearest_name.h>

#include "fabric/config/resolver_internal.h"
#include "fabric/config/scalar_internal.h"

namespace fabric::detail {
namespace {

using Kind = Schema::Kind;

// The first part of a dotted path, taken off it.
std::string_view take_part(std::string_view& path) {
  const std::size_t dot = std::min(path.find('.'), path.size());
  const std::string_view part = path.substr(0, dot);
  path.remove_prefix(std::min(dot + 1, path.size()));
  return part;
}

bool is_quoted(const std::string& text) { return text.size() >= 2 && text.front() == '"' && text.back() == '"'; }

Tree read_flow(const std::string& text, const std::string& path) { return read_yaml(text, "--" + path); }

Tree parse_text(const Schema& schema, const std::string& text, const std::string& path);

void append_items(const Schema& element, const std::string& text, const std::string& path, Tree::List& out) {
  if (text.starts_with('[')) {
    Tree list = read_flow(text, path);
    if (!list.is_list()) fail_kind(path, text, "a list");
    for (Tree& item : list.as_list()) out.push_back(std::move(item));
  } else if (text.starts_with('{')) {
    out.push_back(read_flow(text, path));
  } else if (!text.empty()) {
    for (std::size_t start = 0; start <= text.size();) {
      const std::size_t comma = std::min(text.find(',', start), text.size());
      out.push_back(parse_text(element, text.substr(start, comma - start), path));
      start = comma + 1;
    }
  }
}

Tree parse_text(const Schema& schema, const std::string& text, const std::string& path) {
  const bool flow = text.starts_with('{') || text.starts_with('[');
  if (schema.nullable && text == "null") return {};
  switch (schema.kind) {
    case Kind::boolean: {
      bool value = false;
      return is_bool_word(text, value) ? Tree(value) : Tree(text);
    }
    case Kind::integer:
    case Kind::number:
      return text.empty() ? Tree(text) : resolve_plain(text);
    case Kind::text:
      return schema.nullable && is_quoted(text) ? read_json(text, "--" + path) : Tree(text);
    case Kind::names:
      return text;
    case Kind::list: {
      Tree::List items;
      append_items(schema.element(), text, path, items);
      return items;
    }
    case Kind::map:
    case Kind::structure:
      return flow ? read_flow(text, path) : Tree(text);
    case Kind::variant:
    case Kind::choice:
      return text.starts_with('{') ? read_flow(text, path) : Tree(text);
    case Kind::any:
      break;
  }
  if (flow || text.starts_with('"') || text.starts_with('\'')) return read_flow(text, path);
  return text.empty() ? Tree(text) : resolve_plain(text);
}

Tree parse_texts(const Schema& schema, const Tree* current, const std::vector<std::string>& texts,
                 const std::string& path) {
  if (schema.kind == Kind::list && texts.size() > 1) {
    Tree::List items;
    for (const std::string& text : texts) append_items(schema.element(), text, path, items);
    return items;
  }
  Tree value = parse_text(schema, texts.back(), path);
  // Naming the choice that is in force already keeps its settings.
  if (schema.kind == Kind::choice && value.is_string() && current && current->is_map() && current->at("name") == value)
    return *current;
  return value;
}

// Sets an entry deep in the settings of a choice, where a bare name stands for {name: …}.
void set_deep(Tree& tree, std::string_view path, Tree value) {
  const std::string_view part = take_part(path);
  if (tree.is_string() && !tree.as_string().empty()) tree = Tree::Map{{"name", tree}};
  if (!tree.is_map()) tree = Tree::Map();
  if (path.empty())
    tree[part] = std::move(value);
  else
    set_deep(tree[part], path, std::move(value));
}

Tree layer_for(const Schema& schema, const Tree* current, std::string_view rest, const std::string& path,
               const std::vector<std::string>& texts) {
  static const Schema kAny;
  if (rest.empty()) return parse_texts(schema, current, texts, path);
  std::string_view after = rest;
  const std::string_view part = take_part(after);
  const Tree* inner = current ? current->find(part) : nullptr;
  switch (schema.kind) {
    case Kind::structure:
      if (const Schema::Field* field = schema.find(part))
        return Tree::Map{{std::string(part), layer_for(field->schema(), inner, after, path, texts)}};
      break;
    case Kind::variant: {
      if (rest == "name") return texts.back();
      const std::string name = inner || current ? current->at("name").as_string() : schema.names.front();
      for (std::size_t i = 0; i < schema.names.size(); ++i) {
        if (schema.names[i] != name) continue;
        const Schema& option = schema.alternatives[i]();
        if (const Schema::Field* field = option.find(part))
          return Tree::Map{{std::string(part), layer_for(field->schema(), inner, after, path, texts)}};
        throw FieldError(path, "'" + name + "' has no such setting" + did_you_mean(part, option.field_names()));
      }
      break;
    }
    case Kind::choice: {
      Tree whole = current && !current->is_null() ? *current : Tree("");
      if (whole.is_string()) whole = Tree::Map{{"name", whole}};
      set_deep(whole, rest, rest == "name" ? Tree(texts.back()) : parse_text(kAny, texts.back(), path));
      return whole;
    }
    case Kind::map: {
      Tree whole = current && current->is_map() ? *current : Tree(Tree::Map());
      whole[rest] = parse_texts(schema.element(), nullptr, texts, path);
      return whole;
    }
    default:
      break;
  }
  throw FieldError(path, "no such setting");
}

std::optional<FlagTarget> find_in(const Schema& schema, std::string_view rest) {
  if (rest.empty()) return FlagTarget{&schema, false};
  std::string_view after = rest;
  const std::string_view part = take_part(after);
  if (schema.kind == Kind::choice) return FlagTarget{nullptr, true};
  if (schema.kind == Kind::map) return FlagTarget{&schema.element(), true};
  if (schema.kind == Kind::structure) {
    const Schema::Field* field = schema.find(part);
    return field ? find_in(field->schema(), after) : std::nullopt;
  }
  if (schema.kind == Kind::variant) {
    if (rest == "name") return FlagTarget{&schema, false};
    for (Schema::Ref option : schema.alternatives)
      if (const Schema::Field* field = option().find(part))
        if (auto found = find_in(field->schema(), after)) return found;
  }
  return std::nullopt;
}

// `with` names the alternative whose settings these are.
void list_below(const Schema& schema, const std::string& path, const std::string& with, std::vector<FlagText>& out) {
  for (const Schema::Field& field : schema.fields) {
    const Schema& inner = field.schema();
    const std::string here = below(path, field.name);
    if (inner.kind == Kind::structure) {
      list_below(inner, here, with, out);
      continue;
    }
    auto known = std::find_if(out.begin(), out.end(), [&](const FlagText& flag) { return flag.path == here; });
    if (known != out.end())
      known->with += ", " + with;
    else
      out.push_back({here, field.full_help(), with, &inner});
    for (std::size_t i = 0; i < inner.alternatives.size(); ++i)
      list_below(inner.alternatives[i](), here, inner.names[i], out);
  }
}

}  // namespace

bool is_bool_word(std::string_view text, bool& value) {
  for (std::string_view word : {"true", "True", "1", "yes", "on"})
    if (text == word) return value = true, true;
  for (std::string_view word : {"false", "False", "0", "no", "off"})
    if (text == word) return value = false, true;
  return false;
}

std::optional<FlagTarget> find_flag(const Schema& schema, std::string_view path) {
  if (path.empty() || path.starts_with('.') || path.ends_with('.') || path.find("..") != path.npos) return std::nullopt;
  return find_in(schema, path);
}

std::vector<FlagText> list_flags(const Schema& schema) {
  std::vector<FlagText> out;
  list_below(schema, "", "", out);
  return out;
}

Tree flag_layer(const Schema& schema, const Tree& values, const std::string& path,
                const std::vector<std::string>& texts) {
  return layer_for(schema, &values, path, path, texts);
}

}  // namespace fabric::detail

#include "fabric/config/resolver_internal.h"

#include <algorithm>
#include <cmath>

namespace fabric::detail {
namespace {

std::string name_of(const Tree* tree) {
  if (!tree) return {};
  const Tree* name = tree->is_map() ? tree->find("name") : tree;
  return name && name->is_string() ? name->as_string() : std::string();
}

const Tree* at_path(const Tree& tree, std::string_view path) {
  const Tree* at = &tree;
  while (at && !path.empty()) {
    const std::size_t dot = std::min(path.find('.'), path.size());
    at = at->find(path.substr(0, dot));
    path.remove_prefix(std::min(dot + 1, path.size()));
  }
  return at;
}

int line_of(const TreeLines& lines, std::string path) {
  for (;;) {
    if (auto found = lines.find(path); found != lines.end()) return found->second;
    const std::size_t dot = path.rfind('.');
    if (dot == path.npos) return 0;
    path.resize(dot);
  }
}

}  // namespace

bool trees_equal(const Tree& a, const Tree& b) {
  if (a.is_double() && b.is_double() && std::isnan(a.as_double())) return std::isnan(b.as_double());
  if (a.is_list() && b.is_list())
    return std::equal(a.as_list().begin(), a.as_list().end(), b.as_list().begin(), b.as_list().end(), trees_equal);
  if (!a.is_map() || !b.is_map()) return a == b;
  if (a.as_map().size() != b.as_map().size()) return false;
  for (const auto& [key, value] : a.as_map()) {
    const Tree* other = b.find(key);
    if (!other || !trees_equal(value, *other)) return false;
  }
  return true;
}

static void add_changes(const Tree& a, const Tree& b, const std::string& path, std::vector<ConfigChange>& out) {
  if (trees_equal(a, b)) return;
  // A choice without settings is written as its name alone.
  if (a.is_string() && b.is_map() && b.find("name")) return add_changes(Tree::Map{{"name", a}}, b, path, out);
  if (b.is_string() && a.is_map() && a.find("name")) return add_changes(a, Tree::Map{{"name", b}}, path, out);
  if (!a.is_map() || !b.is_map()) {
    out.push_back({path, a, b});
    return;
  }
  for (const auto& [key, value] : a.as_map()) {
    const Tree* other = b.find(key);
    add_changes(value, other ? *other : Tree(), below(path, key), out);
  }
  for (const auto& [key, value] : b.as_map())
    if (!a.find(key)) add_changes(Tree(), value, below(path, key), out);
}

std::vector<ConfigChange> tree_diff(const Tree& a, const Tree& b) {
  std::vector<ConfigChange> out;
  add_changes(a, b, "", out);
  return out;
}

Tree load_layer(const std::string& path, const Tree& values, const ConfigOps& ops) {
  Resolver resolver(ops, values);
  resolver.apply_file(path);
  return resolver.values();
}

void Resolver::forget_below(const std::string& path) {
  const std::string prefix = path + ".";
  auto it = origins_.lower_bound(prefix);
  while (it != origins_.end() && it->first.starts_with(prefix)) it = origins_.erase(it);
}

void Resolver::set_origin(const std::string& path, const std::string& origin) {
  forget_below(path);
  origins_[path] = origin;
}

void Resolver::mark_changes(const Tree& before, const Tree& after, const std::string& path, const std::string& origin) {
  for (const ConfigChange& change : tree_diff(before, after)) set_origin(below(path, change.path), origin);
}

void Resolver::apply_recipe(const std::string& name) {
  Tree values = ops_.update(values_, make_recipe(*ops_.type, name));
  mark_changes(values_, values, "", "recipe " + name);
  values_ = std::move(values);
}

template <class OriginOf>
void Resolver::mark(const Schema& schema, const Tree* before, const Tree& layer, const std::string& path,
                    const OriginOf& origin_of) {
  auto mark_fields = [&](const Schema& structure, const Tree* old) {
    for (const auto& [key, value] : layer.as_map())
      if (const Schema::Field* field = structure.find(key))
        mark(field->schema(), old ? old->find(key) : nullptr, value, below(path, key), origin_of);
  };
  if (schema.kind == Schema::Kind::structure && (layer.is_map() || (layer.is_null() && !schema.nullable))) {
    if (layer.is_map()) mark_fields(schema, before);
  } else if (schema.kind == Schema::Kind::variant && !layer.is_null()) {
    const std::string old_name = name_of(before), name = name_of(&layer).empty() ? old_name : name_of(&layer);
    if (name != old_name) forget_below(path);
    if (layer.is_string() || layer.find("name")) set_origin(below(path, "name"), origin_of(path));
    for (std::size_t i = 0; layer.is_map() && i < schema.names.size(); ++i)
      if (schema.names[i] == name) mark_fields(schema.alternatives[i](), name == old_name ? before : nullptr);
  } else if (schema.kind == Schema::Kind::choice && layer.is_map() && !layer.find("name")) {
    for (const auto& [key, value] : layer.as_map()) set_origin(below(path, key), origin_of(below(path, key)));
  } else {
    set_origin(path, origin_of(path));
    if (schema.kind == Schema::Kind::choice && layer.is_map())
      for (const auto& [key, value] : layer.as_map()) set_origin(below(path, key), origin_of(below(path, key)));
  }
}

void Resolver::apply_file(const std::string& path) {
  TreeLines lines;
  Tree layer = read_tree_file(path, {}, &lines);
  if (layer.is_null()) return;
  auto place = [&](const std::string& of) {
    const int line = line_of(lines, of);
    return line > 0 ? path + ":" + std::to_string(line) : path;
  };
  try {
    layer = with_current_names_below(ops_.schema(), layer, "", lines);
    Tree values = ops_.update(values_, layer);
    mark(ops_.schema(), &values_, layer, "", place);
    values_ = std::move(values);
  } catch (const FieldError& error) {
    throw ConfigError(place(error.path()) + ": " + error.what());
  }
}

void Resolver::apply_flag(const std::string& path, const std::vector<std::string>& texts) {
  try {
    const Tree layer = flag_layer(ops_.schema(), values_, path, texts);
    Tree values = ops_.update(values_, layer);
    const auto target = find_flag(ops_.schema(), path);
    const std::string command_line = "command line";
    if (target && target->dynamic) {
      // The change rewrote the whole map or choice; what stayed the same keeps its origin.
      mark_changes(values_, values, "", command_line);
      set_origin(path, command_line);
    } else if (target && target->schema->kind == Schema::Kind::choice) {
      mark_changes(values_, values, "", command_line);
      if (name_of(at_path(values_, path)) != name_of(at_path(values, path))) forget_below(path);
      origins_[path] = command_line;
    } else {
      mark(ops_.schema(), &values_, layer, "", [&](const std::string&) -> std::string { return command_line; });
    }
    values_ = std::move(values);
  } catch (const FieldError& error) {
    throw ConfigError("--" + path + ": " +
                      (error.path() == path || error.path().empty() ? error.reason() : error.what()));
  }
}

void Resolver::apply_layer(const Tree& layer, const std::string& origin) {
  try {
    Tree values = ops_.update(values_, layer);
    mark(ops_.schema(), &values_, layer, "", [&](const std::string&) { return origin; });
    values_ = std::move(values);
  } catch (const FieldError& error) {
    throw ConfigError(origin + ": " + error.reason());
  }
}

std::string Resolver::print() const { return print_with_origins(values_, origins_); }

}  // namespace fabric::detail

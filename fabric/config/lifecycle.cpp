// Settings that were renamed, will go, or may change: FABRIC_RENAMED, FABRIC_DEPRECATED_FIELDS,
// FABRIC_EXPERIMENTAL_FIELDS.
#include <fabric/base/lifecycle.h>
#include <fabric/base/log.h>

#include <algorithm>

#include "fabric/config/resolver_internal.h"

namespace fabric::detail {
namespace {

const Schema::Renamed* find_renamed(const Schema& schema, std::string_view name) {
  for (const Schema::Renamed& entry : schema.renamed)
    if (entry.from == name) return &entry;
  return nullptr;
}

void warn_renamed(const Schema::Renamed& entry, const std::string& path) {
  warn_deprecated("the name '" + below(path, entry.from) + "' of a setting", entry.since,
                  "it is called '" + below(path, entry.to) + "' now");
}

void add_lines(TreeLines& lines, const std::string& from, const std::string& to) {
  TreeLines more;
  for (const auto& [path, line] : lines)
    if (path == from || path.starts_with(from + ".")) more.emplace(to + path.substr(from.size()), line);
  lines.merge(more);
}

}  // namespace

Tree with_current_names(const Schema& schema, const Tree& layer, const std::string& path) {
  if (!layer.is_map()) return layer;
  Tree::Map out;
  for (const auto& [key, value] : layer.as_map()) {
    const Schema::Renamed* entry = schema.find(key) ? nullptr : find_renamed(schema, key);
    if (entry && layer.find(entry->to))
      throw FieldError(below(path, key), "given twice: '" + key + "' is the former name of '" + entry->to + "'");
    if (entry) warn_renamed(*entry, path);
    out.append(entry ? entry->to : key, value);
  }
  return out;
}

Tree with_current_names_below(const Schema& schema, const Tree& layer, const std::string& path, TreeLines& lines) {
  if (!layer.is_map()) return layer;
  if (schema.kind == Schema::Kind::variant) {
    // Which alternative it is may stand in another file; a field is looked for in each.
    Tree out = layer;
    for (Schema::Ref alternative : schema.alternatives) out = with_current_names_below(alternative(), out, path, lines);
    return out;
  }
  if (schema.kind != Schema::Kind::structure) return layer;
  for (const Schema::Renamed& entry : schema.renamed) add_lines(lines, below(path, entry.from), below(path, entry.to));
  Tree out = with_current_names(schema, layer, path);
  for (auto& [key, value] : out.as_map())
    if (const Schema::Field* field = schema.find(key))
      value = with_current_names_below(field->schema(), value, below(path, key), lines);
  return out;
}

std::string current_flag(const Schema& schema, const std::string& path, const std::string& above) {
  const std::size_t dot = std::min(path.find('.'), path.size());
  std::string part = path.substr(0, dot);
  const std::string rest = path.substr(std::min(dot + 1, path.size()));
  if (schema.kind == Schema::Kind::variant) {
    for (Schema::Ref alternative : schema.alternatives)
      if (std::string today = current_flag(alternative(), path, above); today != path) return today;
    return path;
  }
  if (schema.kind != Schema::Kind::structure) return path;
  if (const Schema::Renamed* entry = schema.find(part) ? nullptr : find_renamed(schema, part)) {
    warn_renamed(*entry, above);
    part = entry->to;
  }
  const Schema::Field* field = schema.find(part);
  return field && !rest.empty() ? below(part, current_flag(field->schema(), rest, below(above, part)))
                                : below(part, rest);
}

void warn_of_marks(const Schema& schema, const Tree& before, const Tree& after, const std::string& path) {
  for (const Schema::Field& field : schema.fields) {
    if (!field.experimental && field.deprecated_since.empty()) continue;
    const Tree *old = before.find(field.name), *now = after.find(field.name);
    if (!old || !now || trees_equal(*old, *now)) continue;
    const std::string what = "the setting '" + below(path, field.name) + "'";
    if (field.experimental) warn_experimental(what);
    if (!field.deprecated_since.empty()) warn_deprecated(what, field.deprecated_since, field.advice);
  }
}

}  // namespace fabric::detail

namespace fabric {

std::string Schema::Field::full_help() const {
  std::string out = help;
  auto add = [&out](const std::string& note) { out += (out.empty() ? "(" : " (") + note + ")"; };
  if (experimental) add("experimental");
  if (!deprecated_since.empty())
    add("deprecated since " + deprecated_since + ", gone in " + detail::removal_version(deprecated_since) +
        (advice.empty() ? "" : ": " + advice));
  return out;
}

}  // namespace fabric

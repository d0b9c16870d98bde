// Other names for the tensors of a checkpoint, so that a model loads what another program's model of the same kind
// wrote.
//
// A name is the dotted path to a tensor. Keys hold dots themselves ("model", then "encoder.weight"), so a new name does
// not say where it is to be split: a tensor keeps its map where the name still leads there, and else its depth.
//
// Invariants:
// - Whatever is not renamed stays where it is, in its order.
// - No two entries come to have one name; which names are taken is known before anything is placed.
#include <fabric/state/rename.h>

#include <map>
#include <regex>

#include <fabric/base/error.h>

namespace fabric {
namespace {

using Steps = std::vector<std::string>;

std::string below(const std::string& path, const std::string& key) { return path.empty() ? key : path + "." + key; }

/// Takes renamed tensors out of a tree and puts them where their names lead.
class Mover {
 public:
  explicit Mover(Renamer& rename) : rename_(rename) {}

  RenamedValue run(Value value) {
    if (value.is_map()) {
      Steps steps;
      value = map(value.as_map(), "", steps);
      for (auto& [path, entries] : moved_) put(value.as_map(), path, std::move(entries));
    }
    return {std::move(value), std::move(originals_)};
  }

 private:
  Value::Map map(Value::Map& entries, const std::string& path, Steps& steps) {
    Value::Map out;
    for (auto& [key, item] : entries) {
      const std::string name = below(path, key);
      if (item.is<at::Tensor>()) {
        tensor(out, name, key, path, steps, std::move(item));
        continue;
      }
      const bool had_entries = item.is_map() && !item.as_map().empty();
      if (item.is_map()) {
        steps.push_back(key);
        item = map(item.as_map(), name, steps);
        steps.pop_back();
      } else if (item.is_list()) {
        require_unchanged(item, name);
      }
      if (had_entries && item.as_map().empty()) continue;  // all of it has moved
      take_name(name, name);
      out.append(std::move(key), std::move(item));
    }
    return out;
  }

  void tensor(Value::Map& out, const std::string& name, const std::string& key, const std::string& path,
              const Steps& steps, Value item) {
    std::string renamed = rename_(name);
    take_name(renamed, name);
    if (renamed == name) {
      out.append(key, std::move(item));
      return;
    }
    originals_.emplace(renamed, name);
    const std::string inside = path.empty() ? "" : path + ".";
    if (renamed.size() > inside.size() && renamed.starts_with(inside)) {
      out.append(renamed.substr(inside.size()), std::move(item));
      return;
    }
    auto [place, rest] = split(renamed, steps);
    moved_[std::move(place)].append(std::move(rest), std::move(item));
  }

  // The maps that a name leads through, as many as before, and its key in the last.
  static std::pair<Steps, std::string> split(std::string name, const Steps& steps) {
    Steps place;
    bool same = true;
    for (const auto& step : steps) {
      same = same && name.size() > step.size() + 1 && name.starts_with(step) && name[step.size()] == '.';
      const auto dot = same ? step.size() : name.find('.');
      if (dot == name.npos || dot == 0 || dot + 1 == name.size()) break;
      place.push_back(name.substr(0, dot));
      name.erase(0, dot + 1);
    }
    return {std::move(place), std::move(name)};
  }

  // Names are known to be free; a map on the way may have been there all along.
  static void put(Value::Map& root, const Steps& path, Value::Map entries) {
    Value::Map* map = &root;
    for (const auto& step : path) {
      Value& next = (*map)[step];
      if (next.is_null()) next = Value::Map{};
      if (!next.is_map())
        throw CheckpointKeyError("renaming puts entries below '" + step + "', which is " + next.kind());
      map = &next.as_map();
    }
    for (auto& [key, item] : entries) map->append(std::move(key), std::move(item));
  }

  void require_unchanged(Value& list, const std::string& path) {
    for_each_leaf_tensor(
        list,
        [&](at::Tensor&, const std::string& name) {
          if (rename_(name) != name)
            throw CheckpointKeyError("a rule would rename '" + name + "', which lies in the list '" + path +
                                     "': what is in a list has a place, but no name");
        },
        path);
  }

  // Two paths that were one name before any renaming stay as they are.
  void take_name(const std::string& name, const std::string& original) {
    auto [holder, is_new] = holders_.emplace(name, original);
    if (is_new || (name == original && holder->second == name)) return;
    throw CheckpointKeyError("renaming makes one name of two: '" + holder->second + "' and '" + original +
                             "' are both '" + name + "'");
  }

  Renamer& rename_;
  std::unordered_map<std::string, std::string> holders_;  // what had each name before
  std::unordered_map<std::string, std::string> originals_;
  std::map<Steps, Value::Map> moved_;
};

}  // namespace

struct Renamer::Rule {
  RenameRule text;
  std::regex pattern;
  bool used = false;
};

Renamer::~Renamer() = default;

Renamer::Renamer(const RenameRules& rules) {
  for (const auto& rule : rules) {
    try {
      rules_.push_back({rule, std::regex(rule.pattern, std::regex::ECMAScript)});
    } catch (const std::regex_error& error) {
      throw ConfigError("the pattern '" + rule.pattern +
                        "' of a rename rule is no regular expression: " + error.what());
    }
  }
}

std::string Renamer::operator()(const std::string& name) {
  std::string out = name;
  for (auto& rule : rules_) {
    if (out.size() > kLongestName)
      throw CheckpointKeyError("the name '" + out.substr(0, 80) + "…' is too long for rename rules: it has " +
                               std::to_string(out.size()) + " bytes of at most " + std::to_string(kLongestName));
    try {
      if (!std::regex_search(out, rule.pattern)) continue;
      rule.used = true;
      out = std::regex_replace(out, rule.pattern, rule.text.replacement);
    } catch (const std::regex_error& error) {
      throw ConfigError("the pattern '" + rule.text.pattern + "' of a rename rule asks too much of '" +
                        out.substr(0, 80) + "': " + error.what());
    }
  }
  if (out.empty()) throw CheckpointKeyError("the rename rules leave nothing of the name '" + name + "'");
  return out;
}

std::vector<std::string> Renamer::unused() const {
  std::vector<std::string> out;
  for (const auto& rule : rules_)
    if (!rule.used) out.push_back(rule.text.pattern);
  return out;
}

RenamedValue rename_tensors(Value value, Renamer& rename) { return Mover(rename).run(std::move(value)); }

std::string with_original_names(std::string_view text, const std::string& prefix,
                                const std::unordered_map<std::string, std::string>& originals) {
  std::string out;
  for (;;) {
    const auto open = text.find('\'');
    const auto close = open == text.npos ? text.npos : text.find('\'', open + 1);
    if (close == text.npos) return out += text;
    const auto found = originals.find(prefix + std::string(text.substr(open + 1, close - open - 1)));
    // A quote that closes no name may open the next one.
    const auto taken = found == originals.end() ? close : close + 1;
    out += text.substr(0, taken);
    if (found != originals.end()) out += " ('" + found->second + "' in the checkpoint)";
    text.remove_prefix(taken);
  }
}

}  // namespace fabric

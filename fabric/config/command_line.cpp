#include <algorithm>
#include <array>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>

#include <fabric/base/nearest_name.h>

#include "fabric/config/resolver_internal.h"
#include "fabric/config/scalar_internal.h"

namespace fabric::detail {
namespace {

constexpr std::array kOwnFlags = {"config", "recipe", "print-config", "help"};

// Turns the words of a command line into flags with exactly one value each, which is what CLI11 is then told to expect:
// it cannot know alone that `--flag` may go without a value, `--no-flag` is its opposite, and which settings of a
// registry's choice there are.
class Words {
 public:
  Words(const Schema& schema, int argc, const char* const* argv)
      : schema_(schema), given_(argv + std::min(argc, 1), argv + argc) {}

  void sort_out() {
    for (at_ = 0; at_ < given_.size(); ++at_) {
      const std::string& word = given_[at_];
      if (word == "--") {
        positionals.insert(positionals.end(), given_.begin() + static_cast<std::ptrdiff_t>(at_) + 1, given_.end());
        return;
      }
      const bool is_number = word.size() > 1 && (word[1] == '.' || (word[1] >= '0' && word[1] <= '9'));
      if (word == "-h" || word == "--help" || word == "--print-config")
        ready.push_back(word == "-h" ? "--help" : word);
      else if (word.starts_with("--"))
        flag(word.substr(2));
      else if (word.size() > 1 && word[0] == '-' && !is_number)
        fail_unknown(word, word.substr(1));
      else
        positionals.push_back(word);
    }
  }

  std::vector<std::string> ready;
  std::vector<std::string> positionals;
  std::vector<std::string> dynamic;

 private:
  void flag(const std::string& word) {
    const std::size_t equals = word.find('=');
    const std::string name = current(word.substr(0, equals));
    std::optional<std::string> value;
    if (equals != word.npos) value = word.substr(equals + 1);
    if (name == "config" || name == "recipe") return take(name, value);
    if (auto target = find_flag(schema_, name)) {
      const bool has_next = at_ + 1 < given_.size();
      bool ignored = false;
      if (target->dynamic) {
        if (std::find(dynamic.begin(), dynamic.end(), name) == dynamic.end()) dynamic.push_back(name);
        const bool lone = !has_next || given_[at_ + 1].starts_with("--");
        if (!value && lone && !target->schema) value = "true";
      } else if (target->schema->kind == Schema::Kind::boolean && !value) {
        if (!has_next ||
            !(is_bool_word(given_[at_ + 1], ignored) || (target->schema->nullable && given_[at_ + 1] == "null")))
          value = "true";
      }
      return take(name, value);
    }
    if (name.starts_with("no-")) {
      const auto target = find_flag(schema_, name.substr(3));
      if (target && !target->dynamic && target->schema->kind == Schema::Kind::boolean) {
        if (value) throw ConfigError("--" + name + " takes no value; write --" + name.substr(3) + "=" + *value);
        return take(name.substr(3), "false");
      }
    }
    fail_unknown("--" + name, name);
  }

  // `no-` stays before a name that is replaced.
  std::string current(const std::string& name) const {
    if (find_flag(schema_, name)) return name;
    if (std::string today = current_flag(schema_, name); today != name) return today;
    return name.starts_with("no-") ? "no-" + current_flag(schema_, name.substr(3)) : name;
  }

  void take(const std::string& name, std::optional<std::string> value) {
    ready.push_back("--" + name);
    if (!value && at_ + 1 < given_.size()) value = given_[++at_];
    if (!value) return;
    if (find_invalid_utf8(name) != name.npos || find_invalid_utf8(*value) != value->npos)
      throw ConfigError("--" + name + ": " + shown(*value) + " is not UTF-8");
    ready.push_back(*value);
  }

  [[noreturn]] void fail_unknown(const std::string& word, const std::string& name) const {
    std::vector<std::string> valid;
    for (const FlagText& flag : list_flags(schema_)) valid.push_back(flag.path);
    valid.insert(valid.end(), kOwnFlags.begin(), kOwnFlags.end());
    std::string near = nearest_name(name, valid);
    // `--lr` for `--optimizer.lr`: the same last part, further down.
    for (const std::string& path : valid)
      if (near.empty() && path.ends_with("." + name)) near = path;
    throw ConfigError("unknown flag " + word + (near.empty() ? "" : "; did you mean --" + near + "?") +
                      " --help lists all flags");
  }

  const Schema& schema_;
  std::vector<std::string> given_;
  std::size_t at_ = 0;
};

std::string group_of(const std::string& path) {
  const std::size_t dot = path.rfind('.');
  return dot == path.npos ? "Settings" : path.substr(0, dot);
}

std::string default_of(const Tree& defaults, std::string_view path) {
  const Tree* at = &defaults;
  while (at && !path.empty()) {
    const std::size_t dot = std::min(path.find('.'), path.size());
    at = at->find(path.substr(0, dot));
    path.remove_prefix(std::min(dot + 1, path.size()));
  }
  if (!at) return "";
  if (const Tree* name = at->find("name")) return name->is_string() ? name->as_string() : "";
  std::string text = write_yaml(*at);
  text.pop_back();
  return text.find('\n') == text.npos ? text : "…";
}

std::string recipe_list(const std::vector<RecipeText>& recipes) {
  if (recipes.empty()) return "";
  std::string out = "Recipes:\n";
  for (const RecipeText& recipe : recipes) {
    out += "  " + recipe.name;
    if (!recipe.description.empty())
      out += std::string(recipe.name.size() < 36 ? 38 - recipe.name.size() : 2, ' ') + recipe.description;
    out += "\n";
  }
  return out;
}

class CommandLine {
 public:
  CommandLine(const ConfigOps& ops, const std::string& program, const std::string& description)
      : ops_(ops), app_(description, program) {
    app_.set_help_flag();
    app_.get_formatter()->column_width(40);
    app_.get_formatter()->label("REQUIRED", "");
    help_ = app_.add_flag("--help")->description("prints this text (-h)")->group("Options");
    print_ = app_.add_flag("--print-config")
                 ->description("prints the resolved settings and where each comes from")
                 ->group("Options");
    config_ = add("config", "settings from a .yaml or .json file; repeat it to add more, the last one wins", "FILE",
                  "Options");
    recipe_ = add("recipe", "starts from named settings", "NAME", "Options");
    const auto recipes = recipe_texts(*ops.type);
    if (recipes.empty()) recipe_->group("");
    app_.footer(recipe_list(recipes));
    const Tree defaults = ops.defaults();
    for (const FlagText& flag : list_flags(ops.schema())) {
      const std::string type = flag.schema->type_name(), value = default_of(defaults, flag.path);
      std::string help = flag.help;
      if (!flag.with.empty()) help += help.empty() ? "with " + flag.with : " (with " + flag.with + ")";
      add_setting(flag.path, help, value.empty() ? type : type + " = " + value, group_of(flag.path));
    }
  }

  // A flag that --help does not show.
  void add_hidden(const std::string& path) {
    if (!settings_.contains(path)) add_setting(path, "", "", "");
  }

  ParsedTree run(std::vector<std::string> words) {
    std::reverse(words.begin(), words.end());
    try {
      app_.parse(words);
    } catch (const CLI::ParseError& error) {
      throw ConfigError(error.what());
    }
    ParsedTree out;
    if (help_->count() > 0) {
      out.output = app_.help();
      out.values = ops_.defaults();
      return out;
    }
    Resolver resolver(ops_);
    if (recipe_->count() > 1) throw ConfigError("--recipe is given twice; one recipe can call another");
    for (const std::string& name : recipe_->results()) resolver.apply_recipe(name);
    for (const std::string& path : config_->results()) resolver.apply_file(path);
    apply_flags(resolver);
    if (print_->count() > 0) out.output = resolver.print();
    out.values = resolver.values();
    out.origins = resolver.origins();
    return out;
  }

 private:
  CLI::Option* add(const std::string& name, const std::string& help, const std::string& type,
                   const std::string& group) {
    try {
      CLI::Option* option = app_.add_option("--" + name)->description(help)->type_name(type)->group(group);
      return option->expected(1)->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)->allow_extra_args(false);
    } catch (const CLI::ConstructionError&) {
      const std::string map = name.substr(0, name.find('.'));
      throw ConfigError("--" + name + " cannot be a flag; write the whole map: --" + map + " '{\"key\": value}'");
    }
  }
  void add_setting(const std::string& path, const std::string& help, const std::string& type,
                   const std::string& group) {
    for (const char* own : kOwnFlags)
      if (path == own) throw MisuseError("a setting cannot be called '" + path + "': that flag is taken");
    settings_[path] = add(path, help, type, group);
  }

  // A choice comes before its settings, whatever the order of the flags.
  void apply_flags(Resolver& resolver) const {
    std::vector<std::pair<std::string, CLI::Option*>> given;
    for (const auto& [path, option] : settings_)
      if (option->count() > 0) given.emplace_back(path, option);
    auto depth = [](const std::string& path) { return std::count(path.begin(), path.end(), '.'); };
    auto is_name = [](const std::string& path) { return path.ends_with(".name"); };
    std::stable_sort(given.begin(), given.end(), [&](const auto& a, const auto& b) {
      if (depth(a.first) != depth(b.first)) return depth(a.first) < depth(b.first);
      return is_name(a.first) && !is_name(b.first);
    });
    for (const auto& [path, option] : given) resolver.apply_flag(path, option->results());
  }

  const ConfigOps& ops_;
  CLI::App app_;
  CLI::Option* help_ = nullptr;
  CLI::Option* print_ = nullptr;
  CLI::Option* config_ = nullptr;
  CLI::Option* recipe_ = nullptr;
  std::map<std::string, CLI::Option*> settings_;
};

}  // namespace

ParsedTree parse_command_line(const ConfigOps& ops, int argc, const char* const* argv, const ParseOptions& options) {
  const Schema& schema = ops.schema();
  std::string program = argc > 0 ? argv[0] : "";
  program.erase(0, program.rfind('/') + 1);
  Words words(schema, argc, argv);
  words.sort_out();
  CommandLine command_line(ops, program, options.description);
  for (const std::string& path : words.dynamic) command_line.add_hidden(path);
  // Whole structs ('--fabric {strategy: ddp}') and the long form of a name ('--optimizer.name').
  for (const std::string& word : words.ready)
    if (word.starts_with("--") && find_flag(schema, word.substr(2))) command_line.add_hidden(word.substr(2));
  ParsedTree out = command_line.run(words.ready);
  out.positionals = words.positionals;
  if (!options.positionals && !words.positionals.empty() && out.output.empty())
    throw ConfigError("unexpected argument '" + words.positionals.front() + "'; settings are given as --name value");
  return out;
}

}  // namespace fabric::detail

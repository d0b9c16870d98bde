#pragma once
// Settings of every kind, for the tests.
#include <cstdint>
#include <filesystem>

#include <fabric/config.h>

namespace fabric::testing {

enum class Color { red, green, auto_ };
FABRIC_ENUM(Color, red, green, auto_)

struct AdamW {
  static constexpr std::string_view kName = "adamw";
  double lr = 1e-3;
  std::vector<double> betas = {0.9, 0.999};
  bool fused = false;
  FABRIC_FIELDS(AdamW, lr, betas, fused)
  void validate() const {
    if (!(lr > 0)) throw ConfigError("lr must be positive");
  }
};
struct Sgd {
  static constexpr std::string_view kName = "sgd";
  double lr = 0.1;
  double momentum = 0;
  FABRIC_FIELDS(Sgd, lr, momentum)
};

// A type with its own tree.
struct Size {
  int width = 1, height = 1;
  static Size from_tree(const Tree& tree) {
    const std::string& text = tree.as_string();
    const std::size_t x = text.find('x');
    if (x == text.npos) throw ConfigError("expected WIDTHxHEIGHT, given '" + text + "'");
    return {std::stoi(text.substr(0, x)), std::stoi(text.substr(x + 1))};
  }
  Tree to_tree() const { return std::to_string(width) + "x" + std::to_string(height); }
};

struct Inner {
  Choice strategy = "auto";
  int num_nodes = 1;
  std::vector<Choice> loggers;
  std::optional<std::string> note;
  FABRIC_FIELDS(Inner, strategy, num_nodes, loggers, note)
};

struct Config {
  int epochs = 5;
  double lr = 1e-3;
  float decay = 0.1f;
  bool verbose = false;
  bool shuffle = true;
  std::string name = "run";
  std::uint64_t seed = 42;
  std::int8_t tiny = 0;
  std::optional<double> clip;
  std::optional<Inner> extra;
  std::vector<int> xs = {1, 2};
  std::vector<std::string> words;
  std::map<std::string, std::string> env;
  std::map<std::string, Sgd> groups;
  Color color = Color::red;
  std::filesystem::path out = "out/dir";
  Size size;
  Tree anything;
  std::variant<AdamW, Sgd> optimizer;
  Inner fabric = {.strategy = "ddp", .num_nodes = 2};
  FABRIC_FIELDS(Config, epochs, lr, decay, verbose, shuffle, name, seed, tiny, clip, extra, xs, words, env, groups,
                color, out, size, anything, optimizer, fabric)
  FABRIC_HELP(Config, (epochs, "passes over the data"), (lr, "step size"))
  void validate() const {
    if (epochs < 0) throw ConfigError("epochs must not be negative; given " + std::to_string(epochs));
  }
};

template <class Function>
std::string config_error(Function&& function) {
  try {
    function();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "(no error)";
}

template <class T = Config>
Parsed<T> parse_words(const std::vector<std::string>& words, const ParseOptions& options = {}) {
  std::vector<const char*> argv = {"/bin/train"};
  for (const std::string& word : words) argv.push_back(word.c_str());
  return parse_or_throw<T>(static_cast<int>(argv.size()), argv.data(), options);
}

}  // namespace fabric::testing

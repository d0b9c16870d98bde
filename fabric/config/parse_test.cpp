#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>

#include <fabric/base/tree_io.h>

#include "fabric/config/config_test_support.h"
#include "tests/support/catch.h"
#include "tests/support/random_trees.h"

using namespace fabric;
using namespace fabric::testing;
using testing::Config;

namespace {

// A settings file that goes away with its scope.
struct File {
  File(const std::string& text, const std::string& ending)
      : path("/tmp/fabric_parse_" + std::to_string(getpid()) + "_" + std::to_string(count++) + ending) {
    std::ofstream(path) << text;
  }
  ~File() { std::remove(path.c_str()); }
  std::string path;
  static inline int count = 0;
};

std::string words_error(const std::vector<std::string>& words) {
  return config_error([&] { parse_words(words); });
}
Config config_of(const std::vector<std::string>& words) { return parse_words(words).config; }

const bool registered = register_recipe<Config>(
                            "small",
                            [] {
                              Config config;
                              config.epochs = 1;
                              config.name = "small";
                              return config;
                            },
                            "one epoch") &&
                        register_recipe<Config>("small_sgd", [] {
                          Config config = recipe<Config>("small");
                          config.optimizer = Sgd{.lr = 3};
                          return config;
                        });

}  // namespace

TEST_CASE("Flags set fields of every kind", "[config][cli]") {
  const Config config = config_of({"--epochs",
                                   "7",
                                   "--lr=3e-4",
                                   "--name",
                                   "a b",
                                   "--seed",
                                   "18446744073709551615",
                                   "--tiny",
                                   "-3",
                                   "--clip",
                                   "1",
                                   "--xs",
                                   "4,5",
                                   "--words",
                                   "a,b",
                                   "--words",
                                   "c",
                                   "--env.A",
                                   "1",
                                   "--env.B.C",
                                   "x",
                                   "--color",
                                   "green",
                                   "--out",
                                   "/x",
                                   "--size",
                                   "3x4",
                                   "--anything",
                                   "[1, {a: b}]",
                                   "--fabric.num_nodes",
                                   "9",
                                   "--fabric.loggers",
                                   "csv,tensorboard",
                                   "--extra.num_nodes",
                                   "4"});
  CHECK(config.epochs == 7);
  CHECK(config.lr == 3e-4);
  CHECK(config.name == "a b");
  CHECK(config.seed == 18446744073709551615u);
  CHECK(config.tiny == -3);
  CHECK(config.clip == 1.0);
  CHECK(config.xs == std::vector{4, 5});
  CHECK(config.words == std::vector<std::string>{"a", "b", "c"});
  CHECK(config.env == std::map<std::string, std::string>{{"A", "1"}, {"B.C", "x"}});
  CHECK(config.color == Color::green);
  CHECK(config.out == "/x");
  CHECK(config.size.height == 4);
  CHECK(write_json(config.anything) == R"([1,{"a":"b"}])");
  CHECK(config.fabric.num_nodes == 9);
  CHECK(config.fabric.strategy == "ddp");
  CHECK(config.fabric.loggers == std::vector<Choice>{"csv", "tensorboard"});
  CHECK(config.extra->num_nodes == 4);
}

TEST_CASE("Values that look like flags, numbers or nothing are taken as values", "[config][cli]") {
  CHECK(config_of({"--lr", "-1e-3"}).lr == -1e-3);
  CHECK(config_of({"--lr", "-inf"}).lr < 0);
  CHECK(config_of({"--name", "--epochs"}).name == "--epochs");
  CHECK(config_of({"--name", "3"}).name == "3");
  CHECK(config_of({"--name="}).name.empty());
  CHECK(config_of({"--name", ""}).name.empty());
  CHECK(config_of({"--name=[a,b]"}).name == "[a,b]");
  CHECK(config_of({"--name", "a=b"}).name == "a=b");
  CHECK(config_of({"--xs="}).xs.empty());
  CHECK(config_of({"--xs", "[]"}).xs.empty());
  CHECK(config_of({"--xs", "[7, 8]", "--xs", "9"}).xs == std::vector{7, 8, 9});
  CHECK(config_of({"--words", "[\"a,b\", c]"}).words == std::vector<std::string>{"a,b", "c"});
  CHECK(config_of({"--fabric.note", "null"}).fabric.note == std::nullopt);
  CHECK(config_of({"--fabric.note", "\"null\""}).fabric.note == "null");
  CHECK(config_of({"--env", "{A: b}"}).env.at("A") == "b");
  CHECK(config_of({"--fabric", "{num_nodes: 3}"}).fabric.num_nodes == 3);
  CHECK(config_of({"--epochs", "1", "--epochs", "2"}).epochs == 2);
}

TEST_CASE("Bool flags go with and without a value", "[config][cli]") {
  CHECK(config_of({"--verbose"}).verbose);
  CHECK(config_of({"--verbose", "true"}).verbose);
  CHECK(config_of({"--verbose=yes"}).verbose);
  CHECK_FALSE(config_of({"--shuffle", "false"}).shuffle);
  CHECK_FALSE(config_of({"--no-shuffle"}).shuffle);
  CHECK(config_of({"--no-shuffle", "--shuffle"}).shuffle);
  CHECK(config_of({"--verbose", "--epochs", "3"}).epochs == 3);
  CHECK_FALSE(std::get<AdamW>(config_of({"--no-optimizer.fused"}).optimizer).fused);
  CHECK(words_error({"--verbose=maybe"}) == "--verbose: expected true or false, given 'maybe'");
  CHECK(words_error({"--no-verbose=1"}) == "--no-verbose takes no value; write --verbose=1");
  CHECK(words_error({"--no-epochs"}).find("unknown flag --no-epochs") == 0);
}

TEST_CASE("Choices on the command line", "[config][cli]") {
  CHECK(std::get<Sgd>(config_of({"--optimizer.momentum", "0.5", "--optimizer", "sgd"}).optimizer).momentum == 0.5);
  CHECK(std::get<AdamW>(config_of({"--optimizer.lr", "7"}).optimizer).lr == 7);
  CHECK(std::get<Sgd>(config_of({"--optimizer.name", "sgd"}).optimizer).lr == 0.1);
  CHECK(std::get<Sgd>(config_of({"--optimizer", "{name: sgd, lr: 2}"}).optimizer).lr == 2);
  CHECK(words_error({"--optimizer.momentum", "1"}) ==
        "--optimizer.momentum: 'adamw' has no such setting; valid: lr, betas, fused");
  CHECK(words_error({"--optimizer", "agd"}) ==
        "--optimizer: unknown name 'agd'; did you mean 'sgd'? Valid: adamw, sgd");
  const Choice strategy =
      config_of({"--fabric.strategy.bucket_cap_mb", "10", "--fabric.strategy", "fsdp", "--fabric.strategy.static_graph",
                 "--fabric.strategy.hook.rank", "2", "--fabric.strategy.version", "\"3\""})
          .fabric.strategy;
  CHECK(strategy ==
        Choice("fsdp",
               {{"bucket_cap_mb", 10}, {"static_graph", true}, {"hook", Tree::Map{{"rank", 2}}}, {"version", "3"}}));
}

TEST_CASE("Naming the same choice again keeps its settings, another name drops them", "[config][cli]") {
  File file("fabric: {strategy: {name: ddp, hook: powersgd, x: 1}}\n", ".yaml");
  CHECK(config_of({"--config", file.path, "--fabric.strategy", "ddp"}).fabric.strategy.params.size() == 2);
  CHECK(config_of({"--config", file.path, "--fabric.strategy", "dp"}).fabric.strategy.params.empty());
  CHECK(config_of({"--config", file.path, "--fabric.strategy", "{name: ddp}"}).fabric.strategy.params.empty());
  CHECK(config_of({"--config", file.path, "--fabric.strategy.hook.rank", "2"}).fabric.strategy.params.at("hook") ==
        Tree(Tree::Map{{"name", "powersgd"}, {"rank", 2}}));
}

TEST_CASE("Unknown flags name the nearest one", "[config][cli]") {
  CHECK(words_error({"--epoch", "3"}) == "unknown flag --epoch; did you mean --epochs? --help lists all flags");
  CHECK(words_error({"--fabric.num-nodes", "3"}).find("did you mean --fabric.num_nodes?") != std::string::npos);
  CHECK(words_error({"--num_nodes", "3"}).find("did you mean --extra.num_nodes?") != std::string::npos);
  CHECK(words_error({"--confg", "x"}).find("did you mean --config?") != std::string::npos);
  CHECK(words_error({"--qqqqqqqqq"}) == "unknown flag --qqqqqqqqq --help lists all flags");
  CHECK(words_error({"-e", "3"}).find("unknown flag -e") == 0);
  CHECK(words_error({"--"}) == "(no error)");
  CHECK(words_error({"--fabric..x", "1"}).find("unknown flag") == 0);
  CHECK(words_error({"--epochs"}).find("--epochs") != std::string::npos);
  CHECK(words_error({"--epochs", "many"}) ==
        "--epochs: expected an integer from -2147483648 to 2147483647, given 'many'");
  CHECK(words_error({"--xs", "1,b"}) == "--xs: xs.1: expected an integer from -2147483648 to 2147483647, given 'b'");
  CHECK(words_error({"--seed", "-1"}) == "--seed: expected an integer from 0 to 18446744073709551615, given -1");
  CHECK(words_error({"--anything", "{a: "}).find("--anything:1: ") == 0);
  CHECK(words_error({"--env.a b", "1"}).find("write the whole map: --env") != std::string::npos);
  CHECK(words_error({"--name", "\xff"}) == "--name: '?' is not UTF-8");
  CHECK(words_error({"--epochs", "-1"}) == "epochs must not be negative; given -1");
}

TEST_CASE("Words that are no flags", "[config][cli]") {
  CHECK(words_error({"data.csv"}) == "unexpected argument 'data.csv'; settings are given as --name value");
  const auto parsed = parse_words({"a", "--verbose", "b", "-5", "--", "--epochs"}, {.positionals = true});
  CHECK(parsed.positionals == std::vector<std::string>{"a", "b", "-5", "--epochs"});
  CHECK(parsed.config.verbose);
}

TEST_CASE("The command line wins over files, later files over earlier ones, files over the recipe", "[config][cli]") {
  File first("epochs: 2\nlr: 0.2\nname: first\n", ".yaml"), second(R"({"epochs": 3, "lr": 0.3})", ".json");
  const Config config =
      config_of({"--epochs", "4", "--config", first.path, "--recipe", "small_sgd", "--config", second.path});
  CHECK(config.epochs == 4);
  CHECK(config.lr == 0.3);
  CHECK(config.name == "first");
  CHECK(std::get<Sgd>(config.optimizer).lr == 3);
  CHECK(config_of({"--recipe", "small"}).name == "small");
}

TEST_CASE("Every value knows where it came from", "[config][cli]") {
  File file("# comment\nlr: 0.5\nfabric:\n  strategy:\n    name: fsdp\n    a: 1\noptimizer: {lr: 4}\n", ".yaml");
  const auto parsed = parse_words(
      {"--recipe", "small_sgd", "--config", file.path, "--name", "x", "--fabric.strategy.b", "2", "--print-config"});
  CHECK(parsed.origins.at("lr") == file.path + ":2");
  CHECK(parsed.origins.at("name") == "command line");
  CHECK(parsed.origins.at("epochs") == "recipe small_sgd");
  CHECK(parsed.origins.at("fabric.strategy.a") == file.path + ":6");
  CHECK(parsed.origins.at("fabric.strategy.b") == "command line");
  CHECK(parsed.origins.at("optimizer.name") == "recipe small_sgd");
  CHECK(parsed.origins.at("optimizer.lr") == file.path + ":7");
  CHECK_FALSE(parsed.origins.contains("seed"));
  auto line_of = [&](const std::string& start) {
    const std::size_t at = parsed.output.find("\n" + start) + 1;
    return parsed.output.substr(at, parsed.output.find('\n', at) - at);
  };
  CHECK(line_of("lr:") == "lr: 0.5                                         # " + file.path + ":2");
  CHECK(line_of("seed:").ends_with("# default"));
  CHECK(line_of("    name: fsdp").ends_with("# " + file.path + ":5"));
  CHECK(line_of("    b: 2").ends_with("# command line"));
  // What was printed is a settings file again.
  CHECK(config_equal(from_tree<Config>(read_yaml(parsed.output)), parsed.config));
}

TEST_CASE("Origins follow a choice that changes", "[config][cli]") {
  File file("fabric: {strategy: {name: fsdp, a: 1}}\noptimizer: {name: sgd, lr: 2}\n", ".yaml");
  auto parsed = parse_words({"--config", file.path, "--fabric.strategy", "dp", "--optimizer", "adamw"});
  CHECK(parsed.origins.at("fabric.strategy") == "command line");
  CHECK_FALSE(parsed.origins.contains("fabric.strategy.a"));
  CHECK(parsed.origins.at("optimizer.name") == "command line");
  CHECK_FALSE(parsed.origins.contains("optimizer.lr"));
  parsed = parse_words({"--config", file.path, "--fabric.strategy", "fsdp"});
  CHECK(parsed.origins.at("fabric.strategy.a") == file.path + ":1");
}

TEST_CASE("Errors in files name file, line and path", "[config][cli]") {
  File yaml("lr: 0.1\nfabric:\n  num_nodes: two\n", ".yaml"), unknown("lr: 0.1\nfabric:\n  nodes: 2\n", ".yaml");
  CHECK(words_error({"--config", yaml.path}) ==
        yaml.path + ":3: fabric.num_nodes: expected an integer from -2147483648 to 2147483647, given 'two'");
  CHECK(words_error({"--config", unknown.path}).find(unknown.path + ":3: fabric.nodes: unknown setting") == 0);
  CHECK(config_error([&] { load_config<Config>(unknown.path); }).find(unknown.path + ":3: ") == 0);
  CHECK(words_error({"--config", "/no/such.yaml"}).find("'/no/such.yaml' cannot be opened") != std::string::npos);
  CHECK(words_error({"--config", "/tmp"}).find("must end in") != std::string::npos);
  File empty("", ".yaml"), list("[1]", ".json");
  CHECK(config_equal(load_config<Config>(empty.path), Config{}));
  CHECK(words_error({"--config", list.path}).find("expected a map of settings, given a list") != std::string::npos);
}

TEST_CASE("load_config changes a base", "[config]") {
  File file("optimizer: {lr: 9}\n", ".yaml");
  Config base;
  base.optimizer = Sgd{.momentum = 0.5};
  const Config config = load_config(file.path, base);
  CHECK(std::get<Sgd>(config.optimizer).lr == 9);
  CHECK(std::get<Sgd>(config.optimizer).momentum == 0.5);
}

TEST_CASE("Recipes are listed and unknown ones name the nearest", "[config][cli]") {
  CHECK(recipe_names<Config>() == std::vector<std::string>{"small", "small_sgd"});
  CHECK(words_error({"--recipe", "smal"}) == "unknown recipe 'smal'; did you mean 'small'? Valid: small, small_sgd");
  CHECK(words_error({"--recipe", "small", "--recipe", "small"}).find("given twice") != std::string::npos);
  CHECK_THROWS_AS(register_recipe<Config>("small", [] { return Config{}; }), ConfigError);
  CHECK(recipe_names<Inner>().empty());
}

TEST_CASE("Help shows every setting with type, default and text", "[config][cli]") {
  const std::string help = parse_words({"--help"}, {.description = "Trains."}).output;
  for (const char* text :
       {"Trains.", "--epochs int = 5", "passes over the data", "--lr float = 0.001", "--fabric.strategy name = ddp",
        "--optimizer adamw|sgd = adamw", "--optimizer.momentum float", "with sgd", "with adamw, sgd",
        "--color red|green|auto = red", "--xs list of int", "--print-config", "Recipes:", "small", "one epoch",
        "--verbose true|false = false"}) {
    INFO(text << "\n" << help);
    CHECK(help.find(text) != std::string::npos);
  }
  CHECK(parse_words({"-h", "--epochs", "3"}).output == parse_words({"--help"}).output);
}

namespace {
struct Taken {
  int config = 1;
  FABRIC_FIELDS(Taken, config)
};
struct Empty {
  int x = 1;
  FABRIC_FIELDS(Empty, x)
};
}  // namespace

TEST_CASE("Odd command lines", "[config][cli]") {
  CHECK_THROWS_AS(parse_words<Taken>({}), MisuseError);
  CHECK(parse_or_throw<Empty>(0, nullptr).config.x == 1);
  CHECK(parse_words<Empty>({}).config.x == 1);
}

// Exit code and both outputs of a program whose main is parse().
static int run_main(std::vector<const char*> argv, std::string& printed) {
  File out("", ".txt");
  const pid_t child = fork();
  if (child == 0) {
    const int file = open(out.path.c_str(), O_WRONLY);
    dup2(file, 1);
    dup2(file, 2);
    argv.insert(argv.begin(), "/usr/bin/train");
    const Config config = parse<Config>(static_cast<int>(argv.size()), argv.data());
    _exit(config.epochs);
  }
  int status = 0;
  waitpid(child, &status, 0);
  std::ifstream file(out.path);
  printed.assign(std::istreambuf_iterator<char>(file), {});
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST_CASE("parse exits with 2 on bad input and with 0 after printing", "[config][cli]") {
  std::string printed;
  CHECK(run_main({"--epochs", "77"}, printed) == 77);
  CHECK(printed.empty());
  CHECK(run_main({"--epoch", "77"}, printed) == 2);
  CHECK(printed.find("train: unknown flag --epoch; did you mean --epochs?") == 0);
  CHECK(run_main({"--help"}, printed) == 0);
  CHECK(printed.find("--epochs") != std::string::npos);
  CHECK(run_main({"--epochs", "-3", "--print-config"}, printed) == 0);
  CHECK(printed.find("epochs: -3 ") == 0);
}

// A flag for every entry of a tree of settings, written so that each value survives.
static void add_words(const std::string& path, const Tree& value, std::vector<std::string>& words) {
  if (value.is_map() && path != "anything" && path != "env" && path != "groups" && path != "fabric.strategy" &&
      path != "extra") {
    for (const auto& [key, item] : value.as_map()) add_words(path.empty() ? key : path + "." + key, item, words);
    return;
  }
  words.push_back("--" + path);
  if (value.is_string() && path == "fabric.note")
    words.push_back(write_json(value));
  else if (value.is_string() && path == "fabric.strategy")
    words.push_back(write_json(Tree::Map{{"name", value}}));
  else if (value.is_string() && path != "anything")
    words.push_back(value.as_string());
  else if (value.is_double())
    words.push_back(write_yaml(value).substr(0, write_yaml(value).size() - 1));
  else
    words.push_back(write_json(value));
}

TEST_CASE("Random settings survive the command line, YAML and JSON", "[config][cli]") {
  RandomTrees random(3);
  for (int i = 0; i < 300; ++i) {
    Config config;
    config.epochs = static_cast<int>(random.below(1 << 30));
    config.lr = random.number();
    config.decay = static_cast<float>(random.below(1000)) / 7.0f;
    config.verbose = random.below(2);
    config.shuffle = random.below(2);
    config.name = random.text();
    config.seed = random.below(2) ? random.below(~0ull) : random.below(100);
    config.tiny = static_cast<std::int8_t>(random.below(256));
    if (random.below(2)) config.clip = random.number();
    if (random.below(2)) config.extra = Inner{.num_nodes = 3, .note = random.text()};
    if (random.below(2)) config.fabric.note = random.text();
    for (auto n = random.below(3); n > 0; --n) config.words.push_back(random.text());
    for (auto n = random.below(3); n > 0; --n) config.env[random.text()] = random.text();
    for (auto n = random.below(3); n > 0; --n) config.groups[random.text()].lr = 2;
    config.xs.resize(random.below(4), 9);
    config.color = static_cast<Color>(random.below(3));
    // One-line YAML cannot hold NaN and infinity in JSON's spelling, and of what JSON writes as a float no other.
    do config.anything = random.tree(3);
    while (write_json(config.anything).find("Infinity") != std::string::npos ||
           write_json(config.anything).find("NaN") != std::string::npos);
    if (random.below(2)) config.optimizer = Sgd{.lr = 1 + random.below(5) / 4.0};
    if (random.below(2))
      config.fabric.strategy =
          Choice("x", {{"p", static_cast<int>(random.below(9))}, {random.text() + "_", random.text()}});
    const Tree tree = to_tree(config);
    INFO(write_json(tree, true));
    REQUIRE(config_equal(from_tree<Config>(read_yaml(write_yaml(tree))), config));
    REQUIRE(config_equal(from_tree<Config>(read_json(write_json(tree))), config));
    std::vector<std::string> words;
    add_words("", tree, words);
    REQUIRE(config_equal(config_of(words), config));
  }
}

TEST_CASE("Random command lines give settings or a ConfigError", "[config][cli]") {
  static const std::vector<std::string> kFlags = {"--epochs",
                                                  "--lr",
                                                  "--fabric",
                                                  "--fabric.strategy",
                                                  "--fabric.strategy.x",
                                                  "--fabric.strategy.a.b",
                                                  "--optimizer",
                                                  "--optimizer.lr",
                                                  "--optimizer.momentum",
                                                  "--optimizer.name",
                                                  "--env",
                                                  "--env.a",
                                                  "--xs",
                                                  "--words",
                                                  "--groups",
                                                  "--groups.a",
                                                  "--anything",
                                                  "--anything.x",
                                                  "--extra",
                                                  "--extra.note",
                                                  "--no-verbose",
                                                  "--verbose",
                                                  "--print-config",
                                                  "--recipe",
                                                  "--size",
                                                  "--",
                                                  "=",
                                                  "{name: sgd, x: 1}"};
  RandomTrees random(4);
  int errors = 0;
  for (int i = 0; i < 3000; ++i) {
    std::vector<std::string> words;
    for (auto n = 1 + random.below(6); n > 0; --n) {
      std::string word = random.below(2) ? kFlags[random.below(kFlags.size())] : random.text();
      if (random.below(6) == 0) word.append("=").append(random.text());
      if (random.below(8) == 0) word = random.broken(word);
      words.emplace_back(word.c_str());
    }
    try {
      const auto parsed = parse_words(words, {.positionals = true});
      REQUIRE(config_equal(from_tree<Config>(read_yaml(write_yaml(to_tree(parsed.config)))), parsed.config));
    } catch (const ConfigError&) {
      ++errors;
    }
  }
  CHECK(errors > 100);
  CHECK(errors < 2900);
}

#include <cmath>
#include <limits>

#include <fabric/base/tree_io.h>

#include "fabric/config/config_test_support.h"
#include "tests/support/catch.h"

using namespace fabric;
using namespace fabric::testing;
using testing::Config;

static std::string yaml_error(const std::string& yaml) {
  return config_error([&] { from_tree<Config>(read_yaml(yaml)); });
}

TEST_CASE("A struct with fields becomes a tree and back", "[config]") {
  Config config;
  config.seed = std::numeric_limits<std::uint64_t>::max();
  config.tiny = -128;
  config.lr = std::nan("");
  config.decay = std::numeric_limits<float>::infinity();
  config.clip = 1e300;
  config.extra = Inner{.num_nodes = 7};
  config.words = {"1", "true", "", "a,b", "null"};
  config.env = {{"A", "1"}, {"b.c", "x: y"}};
  config.groups["g"].momentum = 0.9;
  config.color = Color::auto_;
  config.out = "/tmp/a b";
  config.size = {3, 4};
  config.anything = read_json(R"({"k": [1, 2.0, null, "x"]})");
  config.optimizer = Sgd{.lr = 5};
  config.fabric.strategy = Choice("fsdp", {{"units", 3}});
  config.fabric.loggers = {"csv", Choice("tensorboard", {{"dir", "x"}})};
  CHECK(config_equal(from_tree<Config>(to_tree(config)), config));
  CHECK(config_equal(from_tree<Config>(read_yaml(write_yaml(to_tree(config)))), config));
  CHECK(config_equal(from_tree<Config>(read_json(write_json(to_tree(config)))), config));
  CHECK_FALSE(config_equal(config, Config{}));
  CHECK(config_equal(Config{}, from_tree<Config>(Tree())));
  CHECK(write_json(to_tree(config).at("decay")) == "Infinity");
  CHECK(write_json(to_tree(Config{}).at("decay")) == "0.1");
  CHECK(to_tree(config).at("color").as_string() == "auto");
}

TEST_CASE("What a tree does not give keeps the parent's default", "[config]") {
  const Config config = from_tree<Config>(read_yaml("fabric: {note: hi}\nextra: {}\nenv:\n  A: b\n"));
  CHECK(config.fabric.num_nodes == 2);
  CHECK(config.fabric.strategy == "ddp");
  CHECK(config.fabric.note == "hi");
  CHECK(config.extra->num_nodes == 1);
  CHECK(config.env.at("A") == "b");
}

TEST_CASE("A closed choice takes a name, a name with settings, or settings alone", "[config]") {
  CHECK(std::get<Sgd>(from_tree<Config>(read_yaml("optimizer: sgd")).optimizer).lr == 0.1);
  CHECK(std::get<Sgd>(from_tree<Config>(read_yaml("optimizer: {lr: 2, name: sgd}")).optimizer).lr == 2);
  CHECK(std::get<AdamW>(from_tree<Config>(read_yaml("optimizer: {fused: true}")).optimizer).fused);
  CHECK(yaml_error("optimizer: adam") == "optimizer: unknown name 'adam'; did you mean 'adamw'? Valid: adamw, sgd");
  CHECK(yaml_error("optimizer: {name: sgd, fused: true}").find("optimizer.fused: unknown setting") == 0);
  CHECK(yaml_error("optimizer: [1]").find("optimizer: expected a name") == 0);
}

TEST_CASE("A registry's choice keeps settings it does not know", "[config]") {
  const Config config =
      from_tree<Config>(read_yaml("fabric: {strategy: {name: x, a: 1, b: {c: 2}}, loggers: [csv, {name: tb, d: 1}]}"));
  CHECK(config.fabric.strategy == Choice("x", {{"a", 1}, {"b", Tree::Map{{"c", 2}}}}));
  CHECK(config.fabric.loggers[1].params.at("d").as_int() == 1);
  const Config kept = from_tree<Config>(read_yaml("fabric: {strategy: {bucket_cap_mb: 1}}"));
  CHECK(kept.fabric.strategy == Choice("ddp", {{"bucket_cap_mb", 1}}));
  CHECK(yaml_error("fabric: {loggers: [{d: 1}]}") ==
        "fabric.loggers.0: settings without a name; add 'name: …' to them");
  CHECK(yaml_error("fabric: {strategy: [3]}").find("fabric.strategy: expected a name") == 0);
  CHECK(yaml_error("fabric: {strategy: {name: [3]}}").find("fabric.strategy.name: expected text") == 0);
}

TEST_CASE("Unknown keys name the nearest valid one", "[config]") {
  CHECK(yaml_error("epoch: 3").find("epoch: unknown setting; did you mean 'epochs'? Valid: epochs, lr") == 0);
  CHECK(yaml_error("fabric: {strategi: ddp}").find("fabric.strategi: unknown setting; did you mean 'strategy'?") == 0);
  CHECK(yaml_error("groups: {a: {mometum: 1}}").find("groups.a.mometum: unknown setting; did you mean 'momentum'?") ==
        0);
}

TEST_CASE("Type errors name path, given value and what is allowed", "[config]") {
  CHECK(yaml_error("epochs: many") == "epochs: expected an integer from -2147483648 to 2147483647, given 'many'");
  CHECK(yaml_error("epochs: 3000000000") ==
        "epochs: expected an integer from -2147483648 to 2147483647, given 3000000000");
  CHECK(yaml_error("epochs: 1.0").find("given 1.0") != std::string::npos);
  CHECK(yaml_error("epochs: \"1\"").find("given '1'") != std::string::npos);
  CHECK(yaml_error("tiny: 128") == "tiny: expected an integer from -128 to 127, given 128");
  CHECK(yaml_error("seed: -1") == "seed: expected an integer from 0 to 18446744073709551615, given -1");
  CHECK(yaml_error("seed: 18446744073709551616").find("given '18446744073709551616'") != std::string::npos);
  CHECK(yaml_error("seed: \"12\"").find("given '12'") != std::string::npos);
  CHECK(yaml_error("lr: fast") == "lr: expected a number, given 'fast'");
  CHECK(yaml_error("lr: true") == "lr: expected a number, given true");
  CHECK(yaml_error("decay: 1e39").find("decay: expected a number up to 3.4") == 0);
  CHECK(yaml_error("verbose: yes") == "verbose: expected true or false, given 'yes'");
  CHECK(yaml_error("verbose: 1") == "verbose: expected true or false, given 1");
  CHECK(yaml_error("name: 1.50") == "name: expected text, given 1.5; put it in quotes: \"1.5\"");
  CHECK(yaml_error("xs: 3") == "xs: expected list of int, given 3");
  CHECK(yaml_error("xs: [1, x]").find("xs.1: expected an integer") == 0);
  CHECK(yaml_error("env: [a]").find("env: expected map of text, given a list") == 0);
  CHECK(yaml_error("color: grene") == "color: unknown name 'grene'; did you mean 'green'? Valid: red, green, auto");
  CHECK(yaml_error("color: 1") == "color: expected one of red|green|auto, given 1");
  CHECK(yaml_error("epochs:").find("given null") != std::string::npos);
  CHECK(yaml_error("size: 3by4") == "size: expected WIDTHxHEIGHT, given '3by4'");
  CHECK(yaml_error("size: axb") == "size: cannot be read: stoi");
  CHECK(yaml_error("size: 3") == "size: expected a string, found an integer");
  CHECK(yaml_error("fabric: 3") == "fabric: expected a map of settings, given 3");
  CHECK(yaml_error("[1]") == "expected a map of settings, given a list");
}

TEST_CASE("Numbers for names, one for a list, and null for what was not chosen", "[config]") {
  auto read = [](const char* text) {
    Config base;
    base.name = "before";
    base.fabric.strategy = "fsdp";
    base.fabric.loggers = {"csv"};
    return from_tree<Config>(read_yaml(text), base);
  };
  CHECK(read("name: 32").name == "32");
  CHECK(read("fabric: {strategy: 3}").fabric.strategy == Choice("3"));
  CHECK(read("fabric: {loggers: tensorboard}").fabric.loggers == std::vector<Choice>{"tensorboard"});
  CHECK(read("fabric: {loggers: {name: tensorboard, dir: x}}").fabric.loggers ==
        std::vector<Choice>{Choice("tensorboard", {{"dir", "x"}})});
  CHECK(read("fabric: {loggers: null}").fabric.loggers.empty());
  CHECK(read("fabric: {strategy: null}").fabric.strategy == decltype(Config::fabric){}.strategy);
  CHECK(read("name:").name == Config{}.name);
  CHECK(read("color: null").color == Config{}.color);
}

TEST_CASE("Numbers take the spellings of people", "[config]") {
  CHECK(from_tree<Config>(read_json(R"({"lr": "inf"})")).lr == std::numeric_limits<double>::infinity());
  CHECK(std::isnan(from_tree<Config>(read_yaml("lr: nan")).lr));
  CHECK(from_tree<Config>(read_yaml("lr: 3")).lr == 3.0);
  CHECK(from_tree<Config>(read_yaml("lr: 100000000000000000000")).lr == 1e20);
  CHECK(from_tree<Config>(read_yaml("seed: 18446744073709551615")).seed == std::numeric_limits<std::uint64_t>::max());
}

TEST_CASE("Cross-field checks run in every struct and name its path", "[config]") {
  CHECK(yaml_error("epochs: -1") == "epochs must not be negative; given -1");
  CHECK(yaml_error("optimizer: {lr: -1}") == "optimizer: lr must be positive");
  CHECK(yaml_error("optimizer: {lr: -1, name: sgd}") == "(no error)");
  Config config;
  config.epochs = -2;
  CHECK_THROWS_AS(validate_config(config), ConfigError);
}

TEST_CASE("The difference of two configs lists each setting", "[config]") {
  Config before, after;
  after.lr = 0.5;
  after.fabric.strategy = Choice("ddp", {{"x", 1}});
  after.optimizer = AdamW{.lr = 1};
  const auto changes = config_diff(before, after);
  REQUIRE(changes.size() == 3);
  CHECK(changes[0].to_string() == "lr: 0.001 -> 0.5");
  CHECK(changes[1].to_string() == "optimizer.lr: 0.001 -> 1.0");
  CHECK(changes[2].to_string() == "fabric.strategy.x: null -> 1");
  CHECK(config_diff(before, before).empty());
}

TEST_CASE("A struct may hold a list of its own kind", "[config]") {
  struct Check {
    static std::string type() { return schema_name(); }
    static std::string schema_name() { return detail::schema_of<Inner>().type_name(); }
  };
  CHECK(Check::type() == "settings");
  CHECK(detail::schema_of<Config>().find("xs")->schema().type_name() == "list of int");
  CHECK(detail::schema_of<Config>().find("clip")->schema().type_name() == "float|null");
  CHECK(detail::schema_of<Config>().find("optimizer")->schema().type_name() == "adamw|sgd");
}

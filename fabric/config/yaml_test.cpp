#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <fstream>

#include <fabric/base/error.h>
#include <fabric/base/tree_io.h>

#include "tests/support/catch.h"
#include "tests/support/random_trees.h"

using fabric::ConfigError;
using fabric::read_json;
using fabric::read_yaml;
using fabric::Tree;
using fabric::write_json;
using fabric::write_yaml;

static std::string error_in_yaml(const std::string& text) {
  try {
    read_yaml(text, "x.yaml");
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST_CASE("YAML scalars follow the core schema", "[config][yaml]") {
  const Tree tree = read_yaml(R"(
a: 1
b: 1e-3
c: "1"
d: yes
e: True
f: ~
g: 0x1F
h: -.inf
i: 18446744073709551615
j: !!str 5
k: 2024-01-01
l: [1, 2.0, x]
m: {n: o}
p: +7
q: .5
r:
)");
  CHECK(write_json(tree) == R"({"a":1,"b":0.001,"c":"1","d":"yes","e":true,"f":null,"g":31,"h":-Infinity,)"
                            R"("i":"18446744073709551615","j":"5","k":"2024-01-01","l":[1,2.0,"x"],"m":{"n":"o"},)"
                            R"("p":7,"q":0.5,"r":null})");
  CHECK(read_yaml("").is_null());
  CHECK(read_yaml("# nothing\n").is_null());
  CHECK(std::isnan(read_yaml(".nan").as_double()));
}

TEST_CASE("YAML aliases are copies", "[config][yaml]") {
  CHECK(write_json(read_yaml("a: &x {lr: 1}\nb: *x\n")) == R"({"a":{"lr":1},"b":{"lr":1}})");
}

TEST_CASE("YAML is written for people", "[config][yaml]") {
  const Tree tree = read_json(
      R"({"lr":1e-05,"xs":[1,2],"name":"yes","fabric":{"strategy":"ddp","loggers":[{"name":"csv","dir":"a b"}],"none":{}}})");
  CHECK(write_yaml(tree) == R"(lr: 1.0e-05
xs: [1, 2]
name: "yes"
fabric:
  strategy: ddp
  loggers:
    - name: csv
      dir: "a b"
  none: {}
)");
}

TEST_CASE("Random trees survive YAML and JSON", "[config][yaml][json]") {
  fabric::testing::RandomTrees random(1);
  for (int i = 0; i < 4000; ++i) {
    const Tree tree = random.tree(5);
    const std::string json = write_json(tree, i % 2 == 0), yaml = write_yaml(tree);
    INFO(json << "\n" << yaml);
    REQUIRE(read_json(json) == tree);
    REQUIRE(read_yaml(yaml) == tree);
    // One-line JSON is YAML, too.
    if (i % 2 && json.size() < 900 && json.find("NaN") == json.npos && json.find("Infinity") == json.npos)
      REQUIRE(read_yaml(json) == tree);
  }
}

TEST_CASE("Deep trees and long keys survive YAML", "[config][yaml]") {
  Tree deep = 1;
  for (int i = 0; i < 60; ++i) deep = i % 2 ? Tree(Tree::List{deep, i}) : Tree(Tree::Map{{"k", deep}});
  CHECK(read_yaml(write_yaml(deep)) == deep);
  const Tree wide = Tree::Map{{std::string(5000, 'k'), 1}, {std::string(3000, ' '), Tree::Map{{"a", "b"}}}};
  CHECK(read_yaml(write_yaml(wide)) == wide);
}

TEST_CASE("Bad YAML is an error with its line", "[config][yaml]") {
  CHECK(error_in_yaml("a: 1\nb: 2\na: 3\n") == "x.yaml:3: the key 'a' is given twice");
  CHECK(error_in_yaml("a: 1\n---\nb: 2\n") == "x.yaml:2: a second document; one file holds one");
  CHECK(error_in_yaml("a: !!python/object:os.system x").find("not supported") != std::string::npos);
  CHECK(error_in_yaml("a: &x {b: 1}\nc:\n  <<: *x\n").find("x.yaml:3: merge keys") == 0);
  CHECK(error_in_yaml("a:\n  - b\n c: d\n").find("x.yaml:") == 0);
  for (const char* text : {"[1, 2",
                           "{a: 1",
                           "a: b: c",
                           "\"open",
                           "'open",
                           "a: *missing",
                           "a: &x [*x]",
                           "? [a]\n: b",
                           "? {a: b}\n: c",
                           "{[a]: b}",
                           "&a a: b\n*a : c",
                           "%YAML 9.9\n---\na",
                           "\t- a\n\t- b",
                           "a: \"\\xzz\"",
                           "- a\nb: c",
                           "!<tag:evil> {a: 1}",
                           "a: !custom [1]",
                           "\xff\xfe",
                           "a: \xc0\xaf",
                           "a: \x01",
                           "]",
                           "}",
                           "a: @b",
                           "a: `b"}) {
    INFO(text);
    CHECK_THROWS_AS(read_yaml(text), ConfigError);
  }
  CHECK_THROWS_AS(read_yaml(std::string("a: \0b", 5)), ConfigError);
  CHECK_THROWS_AS(read_yaml(std::string("\0\0\xfe\xff\0\0\0a", 8)), ConfigError);
}

TEST_CASE("Hostile YAML costs little", "[config][yaml]") {
  std::string laughs = "a0: &a0 lol\n";
  for (int i = 1; i < 40; ++i) {
    laughs += std::string("a") + std::to_string(i) + ": &a" + std::to_string(i) + " [";
    for (int k = 0; k < 10; ++k) laughs += (k ? ",*a" : "*a") + std::to_string(i - 1);
    laughs += "]\n";
  }
  CHECK(error_in_yaml(laughs).find("aliases expand to too much") != std::string::npos);
  std::string same = std::string("s: &s \"") + std::string(100'000, 'x') + "\"\nxs: [";
  for (int i = 0; i < 10'000; ++i) same += "*s,";
  CHECK(error_in_yaml(same + "]").find("aliases expand to too much") != std::string::npos);
  std::string tall = "a0: &a0 [1]\n";
  for (int i = 1; i < 100; ++i)
    tall += std::string("a") + std::to_string(i) + ": &a" + std::to_string(i) + " [*a" + std::to_string(i - 1) + "]\n";
  CHECK(error_in_yaml(tall).find("nested deeper") != std::string::npos);
  for (const char* unit : {"[", "{a: ", "- ", "? ", "&a ", "!a ", "a: {", "- - ", "[{"}) {
    std::string text;
    for (int i = 0; i < 20'000; ++i) text += unit;
    INFO(unit);
    CHECK_THROWS_AS(read_yaml(text), ConfigError);
  }
  std::string steps;
  for (int i = 0; i < 2000; ++i) steps += std::string(i, ' ') + "a:\n";
  CHECK(error_in_yaml(steps).find("nested deeper") != std::string::npos);
  CHECK_THROWS_AS(read_yaml(std::string((16 << 20) + 1, ' ')), ConfigError);
  // Anchors around anchors: each keeps all that is in it once more.
  std::string nested, closing;
  for (int i = 0; i < 60; ++i) nested += "&a" + std::to_string(i) + " [", closing += "]";
  for (int i = 0; i < 20'000; ++i) nested += "x,";
  CHECK(error_in_yaml("a: " + nested + closing).find("anchors hold more than") != std::string::npos);
  // yaml-cpp would keep each of these tokens until the end.
  for (std::string text : {std::string(15 << 20, '['), std::string("[")}) {
    while (text.size() < (15 << 20)) text += "[],";
    CHECK(error_in_yaml(text).find("brackets and commas") != std::string::npos);
  }
}

TEST_CASE("Broken texts give a tree or a ConfigError", "[config][yaml][json]") {
  fabric::testing::RandomTrees random(2);
  int errors = 0;
  for (int i = 0; i < 6000; ++i) {
    const Tree tree = random.tree(4);
    const bool yaml = i % 2;
    const std::string text = random.broken(yaml ? write_yaml(tree) : write_json(tree, true));
    try {
      const Tree read = yaml ? read_yaml(text) : read_json(text);
      REQUIRE(write_json(read_json(write_json(read))) == write_json(read));
    } catch (const ConfigError&) {
      ++errors;
    }
  }
  CHECK(errors > 1000);
}

TEST_CASE("Settings files are read by their ending", "[config][yaml]") {
  const std::string base = "/tmp/fabric_config_" + std::to_string(getpid());
  std::ofstream(base + ".yaml") << "a: 1\n";
  std::ofstream(base + ".json") << "{\"a\": 2}\n";
  CHECK(fabric::read_tree_file(base + ".yaml").at("a").as_int() == 1);
  CHECK(fabric::read_tree_file(base + ".json").at("a").as_int() == 2);
  std::remove((base + ".yaml").c_str());
  std::remove((base + ".json").c_str());
  CHECK_THROWS_AS(fabric::read_tree_file(base + ".yaml"), ConfigError);
  CHECK_THROWS_AS(fabric::read_tree_file(base + ".toml"), ConfigError);
}

#include <cmath>
#include <limits>

#include <fabric/base/error.h>
#include <fabric/base/tree_io.h>

#include "tests/support/catch.h"

using fabric::ConfigError;
using fabric::read_json;
using fabric::Tree;
using fabric::write_json;

static std::string error_of(const std::string& text, const fabric::ReadLimits& limits = {}) {
  try {
    read_json(text, "x.json", limits);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST_CASE("JSON keeps kinds, order and exact floats", "[config][json]") {
  const std::string text = R"({"z":1,"a":[1.0,-0.0,1.0e-05,"1","é\n\u0001",null,true],"m":{}})";
  const Tree tree = read_json(text);
  CHECK(write_json(tree) == R"({"z":1,"a":[1.0,-0.0,1.0e-05,"1","é\n\u0001",null,true],"m":{}})");
  CHECK(read_json(write_json(tree, true)) == tree);
  CHECK(tree.at("a").as_list()[0].is_double());
  for (double value : {0.1, 1e308, 5e-324, std::numeric_limits<double>::max(), 1.0 / 3, 123456789012345680.0})
    CHECK(read_json(write_json(value)).as_double() == value);
  CHECK(std::signbit(read_json("-0").as_double()));
  for (std::int64_t value : {std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max()})
    CHECK(read_json(write_json(value)).as_int() == value);
}

TEST_CASE("JSON writes what is not finite as Python does", "[config][json]") {
  const double infinity = std::numeric_limits<double>::infinity();
  CHECK(write_json(Tree::List{infinity, -infinity, std::nan("")}) == "[Infinity,-Infinity,NaN]");
  CHECK(read_json("-Infinity").as_double() == -infinity);
  CHECK(std::isnan(read_json("NaN").as_double()));
  CHECK(read_json("\"NaN\"").as_string() == "NaN");
}

TEST_CASE("JSON integers beyond 64 bits keep their digits", "[config][json]") {
  CHECK(read_json("18446744073709551615").as_string() == "18446744073709551615");
}

TEST_CASE("JSON escapes give UTF-8", "[config][json]") {
  CHECK(read_json(R"("\u00e9\u20ac\ud83d\ude00\/")").as_string() == "é€😀/");
  CHECK(read_json(write_json("\x7f\u0085\u2028\ufeff\uffff")).as_string() == "\x7f\u0085\u2028\ufeff\uffff");
  CHECK_THROWS_AS(write_json("\xff"), ConfigError);
}

TEST_CASE("Bad JSON is an error with its line", "[config][json]") {
  CHECK(error_of("{\"a\": 1,\n\"b\": }") == "x.json:2: expected a value, found '}'");
  CHECK(error_of("{\"a\": 1,\n \"a\": 2}") == "x.json:2: the key 'a' is given twice");
  for (const char* text : {"",
                           " ",
                           "{",
                           "[",
                           "[1",
                           "[1,",
                           "[1,]",
                           "{\"a\"}",
                           "{\"a\":}",
                           "{\"a\":1,}",
                           "{a:1}",
                           "1 2",
                           "01",
                           "1.",
                           ".5",
                           "+1",
                           "-",
                           "1e",
                           "1e+",
                           "0x10",
                           "nul",
                           "tru",
                           "'a'",
                           "\"a",
                           "\"\\",
                           "\"\\x\"",
                           "\"\\u12\"",
                           "\"\\ud800\"",
                           "\"\\udc00\"",
                           "\"\\ud800\\u0041\"",
                           "\"\n\"",
                           "\"\xff\"",
                           "\"\xc0\xaf\"",
                           "\"\xed\xa0\x80\"",
                           "1e999",
                           "1e-999",
                           "[1}",
                           "{\"a\":1]",
                           "infinity",
                           "--Infinity",
                           "\xef\xbb"})
    CHECK_THROWS_AS(read_json(text), ConfigError);
  CHECK_THROWS_AS(read_json(std::string("\0", 1)), ConfigError);
}

TEST_CASE("JSON has limits on depth, size and number of values", "[config][json]") {
  auto nested = [](int depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  CHECK(error_of(nested(65)).empty());
  CHECK(error_of(nested(66)) == "x.json:1: nested deeper than 64 levels");
  CHECK_FALSE(error_of(std::string(10'000'000, '[')).empty());
  CHECK(error_of("[1,2,3]", {.bytes = 6}) == "x.json: 7 bytes; at most 6 are read");
  CHECK_FALSE(error_of("[1,2,3]", {.nodes = 3}).empty());
  Tree deep = 1;
  for (int i = 0; i < 70; ++i) deep = Tree::List{deep};
  CHECK_THROWS_AS(write_json(deep), ConfigError);
}

TEST_CASE("JSON with very many keys is read in linear time", "[config][json]") {
  std::string text = "{";
  for (int i = 0; i < 200'000; ++i) text += (i ? ",\"k" : "\"k") + std::to_string(i) + "\":1";
  CHECK(read_json(text + "}").as_map().size() == 200'000);
}

TEST_CASE("JSON knows the line of every entry", "[config][json]") {
  fabric::TreeLines lines;
  read_json("{\"a\": {\n \"b\": 1},\n\"xs\": [1,\n2]}", "x", {}, &lines);
  CHECK(lines.at("a") == 1);
  CHECK(lines.at("a.b") == 2);
  CHECK(lines.at("xs.1") == 4);
}

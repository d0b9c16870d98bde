#include <fabric/base/env_reader.h>

#include <fabric/base/error.h>

#include <cstdlib>

#include "tests/support/catch.h"

using Catch::Contains;
using fabric::MapEnv;

TEST_CASE("numbers are whole and within bounds", "[env]") {
  MapEnv env({{"A", "12"}, {"B", "1.5"}, {"C", ""}, {"D", "-3"}, {"E", "99999999999999"}, {"F", " 1"}, {"G", "0x1"}});
  CHECK(env.get_int("A") == 12);
  CHECK_FALSE(env.get_int("MISSING"));
  CHECK(env.get_int("D", -5, 5) == -3);
  for (std::string name : {"B", "C", "D", "E", "F", "G"}) {
    INFO(name);
    CHECK_THROWS_AS(env.get_int(name), fabric::ConfigError);
    CHECK_THROWS_WITH(env.get_int(name), Contains("variable " + name) && Contains("'" + *env.get(name) + "'"));
  }
  CHECK_THROWS_WITH(env.get_int("A", 0, 11), Contains("from 0 to 11"));
}

TEST_CASE("missing variables are named, and who needs them", "[env]") {
  MapEnv env;
  CHECK_THROWS_WITH(env.require("A", "the test"), Contains("variable A") && Contains("the test"));
  CHECK_THROWS_WITH(env.require_int("A", "the test"), Contains("variable A"));
  CHECK(env.get_or("A", "b") == "b");
}

TEST_CASE("the process's variables are read and written", "[env]") {
  auto env = fabric::process_env();
  CHECK_FALSE(env->has("FABRIC_TEST_VARIABLE"));
  env->set("FABRIC_TEST_VARIABLE", "x y");
  CHECK(std::string(std::getenv("FABRIC_TEST_VARIABLE")) == "x y");
  CHECK(env->get("FABRIC_TEST_VARIABLE") == "x y");
  env->unset("FABRIC_TEST_VARIABLE");
  CHECK_FALSE(env->has("FABRIC_TEST_VARIABLE"));
}

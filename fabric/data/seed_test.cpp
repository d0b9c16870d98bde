#include <fabric/data/seed.h>

#include <set>

#include <ATen/ops/rand.h>

#include <fabric/base/error.h>

#include "tests/support/catch.h"

using fabric::MapEnv;

namespace {

std::shared_ptr<MapEnv> env_with(std::map<std::string, std::string> values) {
  return std::make_shared<MapEnv>(std::move(values));
}
double draw() { return at::rand({1}, at::kDouble).item<double>(); }

}  // namespace

TEST_CASE("a seed is taken from the argument, FABRIC_SEED, PL_GLOBAL_SEED, or is 0", "[seed]") {
  CHECK(fabric::seed_everything(7, true, false, env_with({{"FABRIC_SEED", "1"}})) == 7);
  CHECK(fabric::seed_everything(std::nullopt, true, false, env_with({{"FABRIC_SEED", "1"}, {"PL_GLOBAL_SEED", "2"}})) ==
        1);
  CHECK(fabric::seed_everything(std::nullopt, true, false, env_with({{"PL_GLOBAL_SEED", "2"}})) == 2);
  CHECK(fabric::seed_everything(std::nullopt, true, false, env_with({})) == 0);
}

TEST_CASE("seeds outside 32 bits and variables that are no numbers are errors", "[seed]") {
  auto env = env_with({});
  CHECK(fabric::seed_everything(0, true, false, env) == 0);
  CHECK(fabric::seed_everything(4294967295, true, false, env) == 4294967295u);
  CHECK_THROWS_AS(fabric::seed_everything(-1, true, false, env), fabric::ConfigError);
  CHECK_THROWS_AS(fabric::seed_everything(4294967296, true, false, env), fabric::ConfigError);
  CHECK(fabric::seed_everything(std::nullopt, true, false, env_with({{"FABRIC_SEED", ""}, {"PL_GLOBAL_SEED", "2"}})) ==
        2);
  for (const char* text : {"abc", "1.5", "12x", "-1", "4294967296", "99999999999999999999"})
    CHECK_THROWS_AS(fabric::seed_everything(std::nullopt, true, false, env_with({{"FABRIC_SEED", text}})),
                    fabric::ConfigError);
}

TEST_CASE("the seed is left in the environment for processes and loaders that come later", "[seed]") {
  auto env = env_with({});
  CHECK_FALSE(fabric::global_seed(env));
  fabric::seed_everything(11, false, false, env);
  CHECK(env->get("FABRIC_SEED") == "11");
  CHECK(env->get("FABRIC_SEED_WORKERS") == "0");
  CHECK(fabric::global_seed(env) == 11u);
  CHECK_FALSE(fabric::seeds_workers(env));
  fabric::seed_everything(11, true, false, env);
  CHECK(fabric::seeds_workers(env));
}

TEST_CASE("reset_seed starts the same numbers again and keeps the workers' setting", "[seed]") {
  auto env = env_with({});
  fabric::seed_everything(5, false, false, env);
  double first = draw();
  CHECK(draw() != first);
  fabric::reset_seed(env);
  CHECK(draw() == first);
  CHECK_FALSE(fabric::seeds_workers(env));
}

TEST_CASE("reset_seed does nothing before a seed was set", "[seed]") {
  fabric::seed_everything(5, true, false, env_with({}));
  double first = draw(), second = draw();
  fabric::seed_everything(5, true, false, env_with({}));
  CHECK(draw() == first);
  fabric::reset_seed(env_with({}));
  CHECK(draw() == second);
}

TEST_CASE("seeds differ over 64 workers and 64 ranks", "[seed]") {
  std::set<std::uint64_t> first, second, third;
  for (std::uint64_t worker = 0; worker < 64; ++worker)
    for (std::uint64_t rank = 0; rank < 64; ++rank) {
      auto seeds = fabric::worker_seed(3, worker, rank);
      first.insert(seeds.generator);
      second.insert(seeds.second);
      third.insert(seeds.third);
    }
  CHECK(first.size() == 64 * 64);
  CHECK(second.size() == 64 * 64);
  CHECK(third.size() == 64 * 64);
}

TEST_CASE("generator states can be kept and put back", "[seed]") {
  fabric::seed_everything(9, true, false, env_with({}));
  draw();
  fabric::RngState rng;
  auto state = rng.state_dict();
  double next = draw();
  draw();
  rng.load_state_dict(state);
  CHECK(draw() == next);
  CHECK_THROWS_AS(fabric::set_rng_state(fabric::Value(3)), fabric::MisuseError);
}

#include "launcher/start/plan.h"

#include <fabric/base/error.h>

#include "tests/support/catch.h"
#include "tests/support/control_group.h"

using Catch::Contains;
using fabric::Launcher;
using fabric::LaunchPlan;
using fabric::MapEnv;

TEST_CASE("ranks of a node are numbered behind those of the nodes before", "[plan]") {
  LaunchPlan plan({.num_processes = 2, .num_nodes = 3, .node_rank = 2, .main_address = "n0", .main_port = 29500},
                  MapEnv());
  auto info = plan.rank(1);
  CHECK(info.to_string() == "rank 5 of 6, local rank 1 of 2, node 2 of 3, main address n0:29500, environment fabric");
  auto variables = plan.variables(1);
  CHECK(variables.at("RANK") == "5");
  CHECK(variables.at("WORLD_SIZE") == "6");
  CHECK(variables.at("GROUP_RANK") == "2");
  CHECK(variables.at("GROUP_WORLD_SIZE") == "3");
  CHECK(variables.at("MASTER_ADDR") == "n0");
  CHECK(variables.count("FABRIC_JOB_ID") == 0);
}

TEST_CASE("variables give what the settings leave open", "[plan]") {
  MapEnv env({{"MASTER_ADDR", "10.0.0.1"}, {"MASTER_PORT", "4567"}, {"OMP_NUM_THREADS", "3"}});
  LaunchPlan plan({.num_processes = 2, .num_nodes = 2, .node_rank = 1}, env);
  CHECK(plan.variables(0).count("OMP_NUM_THREADS") == 0);
  MapEnv standalone;
  standalone.set("STANDALONE_PORT", "4568");
  CHECK(LaunchPlan({}, standalone).rank(0).main_port == 4568);
  CHECK(plan.rank(0).main_address == "10.0.0.1");
  CHECK(plan.rank(0).main_port == 4567);
  CHECK(plan.threads() == "3");
  CHECK(LaunchPlan({.num_processes = 1000}, MapEnv()).threads() == "1");
}

TEST_CASE("a container's quota of processors counts for the threads of ranks", "[plan]") {
  control_group::OneProcessorGroup group;
  if (!group)
    WARN("no cgroup with a quota of processors may be made here");
  else
    CHECK(group.holds([] { return LaunchPlan({.num_processes = 1}, MapEnv()).threads() == "1"; }));
}

TEST_CASE("a job on one node gets a name that no other job has", "[plan]") {
  MapEnv env({{"FABRIC_JOB_ID", "outer"}, {"MASTER_PORT", "4567"}});
  LaunchPlan plan({.num_processes = 2}, env), other({.num_processes = 2}, env);
  CHECK(plan.variables(0).at("FABRIC_JOB_ID") == plan.variables(1).at("FABRIC_JOB_ID"));
  CHECK(plan.variables(0).at("FABRIC_JOB_ID") != other.variables(0).at("FABRIC_JOB_ID"));
  CHECK(LaunchPlan({.num_processes = 2, .num_nodes = 2}, env).variables(1).at("FABRIC_JOB_ID") == "outer");
}

TEST_CASE("settings that cannot be are errors", "[plan]") {
  auto plan = [](Launcher::Config config) { LaunchPlan(config, MapEnv()); };
  CHECK_THROWS_WITH(plan({.num_processes = 0}), Contains("num_processes is 0"));
  CHECK_THROWS_WITH(plan({.num_nodes = -1}), Contains("num_nodes is -1"));
  CHECK_THROWS_WITH(plan({.num_nodes = 2, .node_rank = 2}), Contains("node_rank is 2") && Contains("that is 1"));
  CHECK_THROWS_WITH(plan({.main_port = 70000}), Contains("main_port is 70000"));
  CHECK_THROWS_WITH(plan({.grace_seconds = -1}), Contains("grace_seconds"));
  CHECK_THROWS_WITH(plan({.num_nodes = 2}), Contains("MASTER_PORT") && Contains("MASTER_ADDR"));
}

TEST_CASE("launchers say what they are and what they need", "[plan]") {
  auto env = std::make_shared<MapEnv>();
  CHECK_FALSE(make_launcher("popen", {}, env)->needs_function());
  CHECK(make_launcher("spawn", {}, env)->needs_function());
  CHECK(make_launcher("fork", {}, env)->kind() == "fork");
  CHECK_THROWS_WITH(make_launcher("forkserver", {}, env),
                    Contains("'forkserver'") && Contains("auto, popen, copy, spawn and fork"));
  CHECK_THROWS_AS(make_launcher("spawn", {}, env)->launch(), fabric::MisuseError);
  CHECK_THROWS_AS(make_launcher("popen", {}, env)->launch_function({}), fabric::MisuseError);
}

TEST_CASE("one process on one node has nobody to start and stays as it is", "[plan]") {
  auto env = std::make_shared<MapEnv>();
  auto launcher = make_launcher("popen", {}, env);
  launcher->launch();
  CHECK(env->values().empty());
  CHECK(launcher->join() == 0);
}

TEST_CASE("a rank that runs already is only told apart from another size", "[plan]") {
  std::map<std::string, std::string> variables{
      {"LOCAL_RANK", "1"}, {"RANK", "1"}, {"WORLD_SIZE", "2"}, {"LOCAL_WORLD_SIZE", "2"}};
  auto by_others = std::make_shared<MapEnv>(variables);
  make_launcher("popen", {.num_processes = 4}, by_others)->launch();
  CHECK(by_others->values() == variables);
  variables["FABRIC_LAUNCHED"] = "1";
  auto by_us = std::make_shared<MapEnv>(variables);
  make_launcher("popen", {.num_processes = 2}, by_us)->launch();
  CHECK_THROWS_AS(make_launcher("popen", {.num_processes = 4}, by_us)->launch(), fabric::MisuseError);
}

TEST_CASE("a function is simply called in a rank that runs already", "[plan]") {
  auto env = std::make_shared<MapEnv>(std::map<std::string, std::string>{
      {"LOCAL_RANK", "1"}, {"RANK", "5"}, {"WORLD_SIZE", "6"}, {"LOCAL_WORLD_SIZE", "2"}});
  auto bytes = make_launcher("spawn", {.num_processes = 2}, env)->launch_function([](const fabric::RankInfo& info) {
    return std::to_string(info.rank) + "/" + std::to_string(info.world_size) + "/" +
           std::to_string(info.local_world_size);
  });
  CHECK(bytes == "5/6/2");
  auto incomplete = std::make_shared<MapEnv>(std::map<std::string, std::string>{{"LOCAL_RANK", "1"}});
  CHECK_THROWS_WITH(make_launcher("spawn", {}, incomplete)->launch_function({}), Contains("RANK"));
}

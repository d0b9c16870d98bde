#include <fabric/plugins/environments/lsf.h>

#include <unistd.h>

#include <fabric/base/error.h>

#include <filesystem>
#include <fstream>

#include "tests/support/catch.h"

using Catch::Contains;
using fabric::LsfEnvironment;
using fabric::MapEnv;
using Variables = std::map<std::string, std::string>;

namespace {

class RankFile {
 public:
  explicit RankFile(const std::string& text)
      : path_(std::filesystem::temp_directory_path() / ("fabric_rankfile_" + std::to_string(getpid()))) {
    std::ofstream(path_) << text;
  }
  ~RankFile() { std::filesystem::remove(path_); }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

Variables jsrun_task(const RankFile& file) {
  return {{"LSB_JOBID", "1234567"},
          {"LSB_DJOB_RANKFILE", file.path()},
          {"JSM_NAMESPACE_RANK", "3"},
          {"JSM_NAMESPACE_LOCAL_RANK", "1"},
          {"JSM_NAMESPACE_SIZE", "4"}};
}

}  // namespace

TEST_CASE("a task of jsrun", "[lsf]") {
  RankFile file("launch\nc2\nc2\nc1.site.org\nc1.site.org\n");
  MapEnv env(jsrun_task(file));
  CHECK(LsfEnvironment::detect(env));
  auto info = LsfEnvironment(env, "c1.site.org").rank_info();
  CHECK(info.to_string() ==
        "rank 3 of 4, local rank 1 of 2, node 1 of 2, main address c2:10567, environment lsf, LSF job 1234567");
  CHECK(info.spare_ports == LsfEnvironment(env, "c2").spare_ports());
  CHECK(info.spare_ports.size() == 8);
  CHECK(LsfEnvironment(env, "c2").node_rank() == 0);
  CHECK(LsfEnvironment(env, "c1").node_rank() == 1);
  CHECK_THROWS_WITH(LsfEnvironment(env, "launch"), Contains("launch") && Contains("LSB_DJOB_RANKFILE"));
  env.set("MASTER_PORT", "77");
  CHECK(LsfEnvironment(env, "c2").main_port() == 77);
  CHECK(LsfEnvironment(env, "c2").spare_ports().empty());
  env.set("JSM_NAMESPACE_RANK", "4");
  CHECK_THROWS_WITH(LsfEnvironment(env, "c2"), Contains("JSM_NAMESPACE_RANK=4"));
}

TEST_CASE("LSF is detected by all four of its variables", "[lsf]") {
  RankFile file("launch\nc1\n");
  for (const char* name : {"LSB_JOBID", "LSB_DJOB_RANKFILE", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_SIZE"}) {
    MapEnv env(jsrun_task(file));
    env.unset(name);
    CHECK_FALSE(LsfEnvironment::detect(env));
  }
}

TEST_CASE("an LSF rank file that is missing or empty is refused", "[lsf]") {
  RankFile file("launch\n");
  MapEnv env(jsrun_task(file));
  CHECK_THROWS_WITH(LsfEnvironment(env, "launch"), Contains("at least one more host"));
  env.set("LSB_DJOB_RANKFILE", "/nowhere/ranks");
  CHECK_THROWS_WITH(LsfEnvironment(env, "c1"), Contains("cannot be read: /nowhere/ranks"));
  env.unset("JSM_NAMESPACE_RANK");
  CHECK_THROWS_AS(LsfEnvironment(env, "c1"), fabric::ConfigError);
}

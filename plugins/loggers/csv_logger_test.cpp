#include <fabric/plugins/loggers/csv_logger.h>

#include <sys/stat.h>

#include <cmath>
#include <fstream>
#include <limits>

#include <fabric/base/env_reader.h>
#include <fabric/base/tree_io.h>
#include <fabric/plugins/loggers/registry.h>

#include "fabric/base/atomic_file_test_support.h"
#include "plugins/loggers/flat_hparams.h"
#include "plugins/loggers/test_folder.h"
#include "tests/support/catch.h"

using fabric::CsvLogger;
using fabric::Metrics;

namespace {

std::string content(const CsvLogger& logger) { return read_file(logger.log_dir() + "/metrics.csv"); }

void append(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::app) << text; }

}  // namespace

TEST_CASE("Columns are sorted, the step among them, and missing cells are empty", "[csv]") {
  TestFolder folder;
  CsvLogger logger({.root_dir = folder.path});
  logger.log_metrics({{"z", 1.5}, {"a", 2}}, 0);
  logger.log_metrics({{"a", 0.1}}, 1);
  CHECK_FALSE(std::filesystem::exists(logger.log_dir() + "/metrics.csv"));
  logger.save();
  CHECK(content(logger) == "a,step,z\n2,0,1.5\n0.1,1,\n");
}

TEST_CASE("A new column rewrites the file and loses no row", "[csv]") {
  TestFolder folder;
  CsvLogger logger({.root_dir = folder.path});
  logger.log_metrics({{"b", 1}}, 0);
  logger.save();
  logger.log_metrics({{"b", 2}}, 1);
  logger.log_metrics({{"a,\"x\"", 3}}, 2);
  logger.save();
  CHECK(content(logger) == "\"a,\"\"x\"\"\",b,step\n,1,0\n,2,1\n3,,2\n");
  logger.log_metrics({{"c", 4}}, 3);
  logger.finalize("success");
  CHECK(content(logger) == "\"a,\"\"x\"\"\",b,c,step\n,1,,0\n,2,,1\n3,,,2\n,,4,3\n");
  CHECK(std::distance(std::filesystem::directory_iterator(logger.log_dir()), {}) == 1);
}

TEST_CASE("Rows that add no column are appended to the same file", "[csv]") {
  TestFolder folder;
  CsvLogger logger({.root_dir = folder.path});
  logger.log_metrics({{"a", 1}}, 0);
  logger.save();
  // A second name of the file sees what is appended, and would miss a rewrite.
  std::filesystem::create_hard_link(logger.log_dir() + "/metrics.csv", folder.path + "/link");
  logger.log_metrics({{"a", 2}}, 1);
  logger.save();
  CHECK(read_file(folder.path + "/link") == "a,step\n1,0\n2,1\n");
}

TEST_CASE("Rows are written every n steps, and when n are waiting", "[csv]") {
  TestFolder folder;
  CsvLogger logger({.root_dir = folder.path, .flush_logs_every_n_steps = 3});
  logger.log_metrics({{"a", 1}}, 0);
  logger.log_metrics({{"a", 1}}, 1);
  CHECK_FALSE(std::filesystem::exists(logger.log_dir()));
  logger.log_metrics({{"a", 1}}, 2);
  CHECK(content(logger) == "a,step\n1,0\n1,1\n1,2\n");
  for (int step : {9, 12, 15}) logger.log_metrics({{"a", 1}}, step);  // only their number is a reason
  CHECK(content(logger) == "a,step\n1,0\n1,1\n1,2\n1,9\n1,12\n1,15\n");
  CHECK_THROWS_AS(CsvLogger({.flush_logs_every_n_steps = 0}), fabric::ConfigError);
}

TEST_CASE("Rows that the disk did not take are written later, and once", "[csv]") {
  TestFolder folder;
  CsvLogger logger({.root_dir = folder.path, .flush_logs_every_n_steps = 1000});
  logger.log_metrics({{"a", 1}}, 0);
  logger.save();
  std::string expected = "a,step\n1,0\n";
  for (int step = 1; step <= 50; ++step) {
    logger.log_metrics({{"a", 1}}, step);
    expected += "1," + std::to_string(step) + "\n";
  }
  {
    FileSizeLimit limit(100);
    CHECK_THROWS_WITH(logger.save(), Catch::Contains("metrics.csv") && Catch::Contains("File too large"));
    CHECK(content(logger) == "a,step\n1,0\n");
  }
  logger.save();
  CHECK(content(logger) == expected);

  logger.log_metrics({{"a", 1}, {"b", 2}}, 51);  // a new column: the file is to be rewritten
  {
    FileSizeLimit limit(100);
    CHECK_THROWS_WITH(logger.save(), Catch::Contains("metrics.csv") && Catch::Contains("File too large"));
    CHECK_THROWS_AS(logger.log_hyperparams(fabric::Tree::Map{{"text", std::string(200, 'x')}}), fabric::Error);
    CHECK(content(logger) == expected);
    CHECK(std::distance(std::filesystem::directory_iterator(logger.log_dir()), {}) == 1);
  }
  logger.save();
  CHECK(content(logger).starts_with("a,b,step\n1,,0\n1,,1\n"));
  CHECK(content(logger).ends_with("\n1,,50\n1,2,51\n"));
}

TEST_CASE("Steps that are not given go on from the last, also after a flush and in a later run", "[csv]") {
  TestFolder folder;
  CsvLogger::Config config{.root_dir = folder.path, .version = "mine", .flush_logs_every_n_steps = 2};
  {
    CsvLogger logger(config);
    for (int i = 0; i < 3; ++i) logger.log_metrics({{"a", i}}, std::nullopt);
    logger.log_metrics({{"a", 3}}, 10);
    logger.log_metrics({{"a", 4}}, std::nullopt);
  }
  {
    CsvLogger logger(config);
    logger.log_metrics({{"a", 5}, {"b", 1}}, std::nullopt);
  }
  CHECK(read_file(folder.path + "/fabric_logs/mine/metrics.csv") ==
        "a,b,step\n0,,0\n1,,1\n2,,2\n3,,10\n4,,11\n5,1,12\n");
}

TEST_CASE("A pipe in the place of the file is refused at once", "[csv]") {
  TestFolder folder;
  std::filesystem::create_directories(folder.path + "/v");
  REQUIRE(mkfifo((folder.path + "/v/metrics.csv").c_str(), 0600) == 0);
  CsvLogger logger({.root_dir = folder.path, .run_name = "", .version = "v", .flush_logs_every_n_steps = 1});
  CHECK_THROWS_WITH(logger.log_metrics({{"a", 1}}, 0), Catch::Contains("no regular file"));
  CHECK(std::filesystem::is_fifo(folder.path + "/v/metrics.csv"));
  std::filesystem::remove(folder.path + "/v/metrics.csv");
}

TEST_CASE("A log folder elsewhere is refused", "[csv]") {
  CHECK_THROWS_AS(CsvLogger({.root_dir = "s3://bucket/logs"}), fabric::ConfigError);
}

TEST_CASE("Half a row that a kill left is dropped", "[csv]") {
  TestFolder folder;
  CsvLogger::Config config{.root_dir = folder.path, .run_name = "", .version = "v"};
  { CsvLogger(config).log_metrics({{"a", 1}}, 0); }
  append(folder.path + "/v/metrics.csv", "2,");
  { CsvLogger(config).log_metrics({{"a", 3}}, std::nullopt); }
  CHECK(read_file(folder.path + "/v/metrics.csv") == "a,step\n1,0\n3,1\n");
}

TEST_CASE("Numbers keep all digits; infinite ones and NaN are written as Python reads them", "[csv]") {
  TestFolder folder;
  CsvLogger logger({.root_dir = folder.path, .prefix = "p"});
  constexpr double kInf = std::numeric_limits<double>::infinity();
  logger.log_metrics({{"x", 0.1 + 0.2}, {"n", std::nan("")}, {"i", kInf}, {"j", -kInf}, {"l", 1e300}}, 0);
  logger.save();
  CHECK(content(logger) == "p-i,p-j,p-l,p-n,p-x,step\ninf,-inf,1e+300,nan,0.30000000000000004,0\n");
}

TEST_CASE("Versions count on from the highest; a given one is used as it is", "[csv]") {
  TestFolder folder;
  namespace fs = std::filesystem;
  for (const char* name : {"version_2", "version_10", "version_x", "version_", "other"})
    fs::create_directories(folder.path + "/fabric_logs/" + name);
  std::ofstream(folder.path + "/fabric_logs/version_99");  // a file, not a run
  CsvLogger first({.root_dir = folder.path}), second({.root_dir = folder.path});
  CHECK(first.version() == "version_11");
  first.log_metrics({{"a", 1}}, 0);
  first.save();
  second.log_metrics({{"a", 1}}, 0);
  second.save();
  CHECK(second.version() == "version_12");
  CHECK(CsvLogger({.root_dir = folder.path, .version = "x"}).log_dir() == folder.path + "/fabric_logs/x");
  CHECK(CsvLogger({.root_dir = folder.path, .run_name = ""}).log_dir() == folder.path + "/version_0");
}

TEST_CASE("Hyperparameters are written as YAML", "[csv]") {
  TestFolder folder;
  CsvLogger logger({.root_dir = folder.path});
  fabric::Tree params = fabric::Tree::Map{{"lr", 0.1}, {"model", fabric::Tree::Map{{"layers", 3}}}};
  logger.log_hyperparams(params);
  CHECK(fabric::read_tree_file(logger.log_dir() + "/hparams.yaml") == params);
}

TEST_CASE("A file of another kind is left alone, and a folder that cannot be made is an error", "[csv]") {
  TestFolder folder;
  std::filesystem::create_directories(folder.path + "/fabric_logs/v");
  append(folder.path + "/fabric_logs/v/metrics.csv", "time,loss\n1,2\n");
  CsvLogger logger({.root_dir = folder.path, .version = "v"});
  CHECK_THROWS_AS(logger.log_metrics({{"a", 1}}, std::nullopt), fabric::Error);
  CHECK(content(logger) == "time,loss\n1,2\n");
  append(folder.path + "/file", "x");
  CsvLogger nowhere({.root_dir = folder.path + "/file"});
  CHECK_THROWS_AS(nowhere.log_hyperparams({}), fabric::Error);
}

TEST_CASE("Home and variables in the folder of CSV files are expanded", "[csv]") {
  TestFolder folder;
  auto env = fabric::process_env();
  env->set("FABRIC_TEST_LOGS", folder.path);
  CHECK(CsvLogger({.root_dir = "~/a"}).root_dir() == env->get_or("HOME", "~") + "/a");
  CsvLogger logger({.root_dir = "$FABRIC_TEST_LOGS/a", .version = "v"});
  logger.log_metrics({{"a", 1}}, 0);
  logger.save();
  CHECK(logger.log_dir() == folder.path + "/a/fabric_logs/v");
  CHECK(content(logger) == "a,step\n1,0\n");
  env->unset("FABRIC_TEST_LOGS");
}

TEST_CASE("Settings are flattened to paths", "[csv]") {
  using fabric::Tree;
  Tree params = Tree::Map{{"a", Tree::Map{{"b", Tree::List{Tree(Tree::Map{{"c", 1}}), Tree("x")}}, {"none", Tree()}}},
                          {"sizes", Tree::List{64, 32}},
                          {"empty", Tree::Map{}}};
  std::vector<std::pair<std::string, Tree>> expected = {
      {"a/b/0/c", 1}, {"a/b/1", "x"}, {"a/none", Tree()}, {"sizes", "[64,32]"}, {"empty", "{}"}};
  CHECK(fabric::flat_hparams(params) == expected);
  CHECK(fabric::flat_hparams({}).empty());
}

TEST_CASE("Loggers are made by name", "[csv]") {
  TestFolder folder;
  auto logger =
      fabric::make_logger({"CSV", {{"root_dir", folder.path}, {"run_name", "n"}, {"flush_logs_every_n_steps", 1}}});
  logger->log_metrics({{"a", 1}}, 0);
  CHECK(read_file(folder.path + "/n/version_0/metrics.csv") == "a,step\n1,0\n");
  CHECK_THROWS_WITH(fabric::make_logger("tensorbord"), Catch::Contains("tensorboard"));
  CHECK_THROWS_WITH(fabric::make_logger({"csv", {{"root_dirr", "x"}}}), Catch::Contains("root_dir"));
  CHECK_THROWS_AS(fabric::make_logger({"csv", {{"flush_logs_every_n_steps", "often"}}}), fabric::ConfigError);

  fabric::MakeLogger make = [](const fabric::Tree::Map&) { return std::make_shared<CsvLogger>(); };
  CHECK_THROWS_AS(fabric::register_logger("csv", make), fabric::ConfigError);
  fabric::register_logger("Mine", make);
  CHECK(fabric::make_logger("mine")->name() == "fabric_logs");
  CHECK(fabric::available_loggers() == std::vector<std::string>{"csv", "mine", "tensorboard"});
}

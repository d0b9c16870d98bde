#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "tests/support/catch.h"

// Tests whose ranks are real processes. RANKS_TEST("name", "[tag]", 2) { … } registers a test that starts two copies of
// the test program (rank_server.h says how); each runs the body with RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE,
// NODE_RANK, MASTER_ADDR and MASTER_PORT set and fails by throwing (RANK_CHECK) or by its exit code.
namespace ranks {

struct Outcome {
  int exit_code = 0;   // 128 + n when killed by signal n; 124 when it ran out of time
  std::string output;  // stdout and stderr together
};
struct Options {
  int world_size = 2;
  double timeout_seconds = 120;
  std::map<std::string, std::string> env;
  std::vector<std::string> prefix;  // for instance {"mpirun", "-n", "2"}: starts once, ranks come from the launcher
};

using Body = std::function<void(int rank, int world_size)>;
bool add_body(const std::string& name, Body body);
std::map<std::string, Body>& bodies();
/// Starts the ranks of a registered body and waits for all; kills what is left at the timeout.
std::vector<Outcome> run(const std::string& body, const Options& options);
/// As run, and requires that every rank ended with 0.
void run_and_require(const std::string& body, const Options& options);
/// Runs any program as `world_size` ranks with the same variables.
std::vector<Outcome> run_program(const std::vector<std::string>& command, const Options& options);
std::string self();

[[noreturn]] void fail(const char* file, int line, const std::string& what);

}  // namespace ranks

#define RANK_CHECK(...)                                                  \
  do {                                                                   \
    if (!(__VA_ARGS__)) ::ranks::fail(__FILE__, __LINE__, #__VA_ARGS__); \
  } while (false)

#define RANKS_NAME2_(a, b) a##b
#define RANKS_NAME_(a, b) RANKS_NAME2_(a, b)
#define RANKS_BODY_(body, added, name)        \
  static void body(int rank, int world_size); \
  static const bool added = ::ranks::add_body(name, body);
#define RANKS_BODY2_(number, name)                                                       \
  RANKS_BODY_(RANKS_NAME_(ranks_body_, number), RANKS_NAME_(ranks_added_, number), name) \
  static void RANKS_NAME_(ranks_body_, number)([[maybe_unused]] int rank, [[maybe_unused]] int world_size)
#define RANKS_TEST2_(number, name, tags, count)                                          \
  RANKS_BODY_(RANKS_NAME_(ranks_body_, number), RANKS_NAME_(ranks_added_, number), name) \
  TEST_CASE(name, tags) { ::ranks::run_and_require(name, {.world_size = count}); }       \
  static void RANKS_NAME_(ranks_body_, number)([[maybe_unused]] int rank, [[maybe_unused]] int world_size)
/// Only registers the body; a TEST_CASE calls ranks::run with options of its own.
#define RANKS_BODY(name) RANKS_BODY2_(__COUNTER__, name)
#define RANKS_TEST(name, tags, count) RANKS_TEST2_(__COUNTER__, name, tags, count)

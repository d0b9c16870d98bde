#include "tests/support/ranks.h"

#include <unistd.h>

#include <cstdlib>
#include <stdexcept>

#include "tests/support/free_port.h"
#include "tests/support/rank_process.h"
#include "tests/support/rank_server.h"

namespace ranks {
namespace {

/// What every rank of a job is told.
Variables of_job(const Options& options) {
  auto variables = options.env;
  variables.try_emplace("MASTER_ADDR", "127.0.0.1");
  variables.try_emplace("NODE_RANK", "0");
  variables.try_emplace("GROUP_RANK", "0");
  variables.try_emplace("OMP_NUM_THREADS", "1");
  return variables;
}

/// What one rank is told besides.
std::vector<Variables> of_ranks(const Options& options) {
  const std::string size = std::to_string(options.world_size);
  const std::string port = std::to_string(free_port());
  std::vector<Variables> ranks;
  for (int rank = 0; rank < options.world_size; ++rank) {
    const std::string number = std::to_string(rank);
    ranks.push_back({{"RANK", number}, {"LOCAL_RANK", number}, {"WORLD_SIZE", size}, {"LOCAL_WORLD_SIZE", size}});
    if (!options.env.contains("MASTER_PORT")) ranks.back()["MASTER_PORT"] = port;
  }
  return ranks;
}

}  // namespace

std::map<std::string, Body>& bodies() {
  static std::map<std::string, Body> all;
  return all;
}

bool add_body(const std::string& name, Body body) { return bodies().emplace(name, std::move(body)).second; }

std::string self() {
  char path[4096];
  ssize_t n = readlink("/proc/self/exe", path, sizeof path);
  return std::string(path, n > 0 ? n : 0);
}

std::vector<Outcome> run_program(const std::vector<std::string>& command, const Options& options) {
  std::vector<Process> processes;
  if (!options.prefix.empty()) {
    auto line = options.prefix;
    line.insert(line.end(), command.begin(), command.end());
    processes.push_back(start(line, options.env));
  } else {
    for (auto& variables : of_ranks(options)) {
      variables.merge(of_job(options));
      processes.push_back(start(command, variables));
    }
  }
  return wait_all(std::move(processes), options.timeout_seconds);
}

std::vector<Outcome> run(const std::string& body, const Options& options) {
  if (!options.prefix.empty()) {
    auto with_body = options;
    with_body.env["FABRIC_TEST_BODY"] = body;
    return run_program({self()}, with_body);
  }
  auto job = of_job(options);
  job["FABRIC_TEST_BODY"] = body;
  // What only bodies read comes to each rank by itself, so that one server will do for all of its values.
  Variables of_bodies;
  std::erase_if(job, [&](const auto& variable) {
    return variable.first.starts_with("FABRIC_TEST_") && of_bodies.insert(variable).second;
  });
  auto ranks = of_ranks(options);
  for (auto& variables : ranks) variables.insert(of_bodies.begin(), of_bodies.end());
  return rank_server(job).run(ranks, options.timeout_seconds);
}

void run_and_require(const std::string& body, const Options& options) {
  auto outcomes = run(body, options);
  for (std::size_t rank = 0; rank < outcomes.size(); ++rank) {
    INFO("rank " << rank << " of '" << body << "':\n" << outcomes[rank].output);
    CHECK(outcomes[rank].exit_code == 0);
  }
}

void fail(const char* file, int line, const std::string& what) {
  throw std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

}  // namespace ranks

#pragma once

#include <map>
#include <string>
#include <vector>

#include "launcher/run/options.h"

namespace fabric::run {

using Variables = std::map<std::string, std::string>;

/// The job as one node sees it, known before any worker starts.
struct Job {
  std::string id;
  std::string host;
  std::string role;
  int node = 0, nodes = 1;
  int local_size = 1;
  int first_rank = 0, world_size = 1;
  std::string master_addr;
  int master_port = 0;
  int max_restarts = 0;
};

/// This process's variables, without all that tells a process its place in a job of another launcher.
Variables outer_variables();
/// The same for given variables ("NAME=VALUE").
Variables without_outer_job(const std::vector<std::string>& variables);

/// What all workers get. `base` are the outer variables.
Variables common_variables(const Job& job, const Options& options, Variables base, int processors);
/// Adds what only one worker gets.
void add_place(Variables& variables, const Job& job, const Options& options, int local_rank, int attempt,
               const std::string& error_file);

/// `${local_rank}` in each argument; every other $ stays.
std::vector<std::string> substitute_local_rank(std::vector<std::string> arguments, int local_rank);

}  // namespace fabric::run

#pragma once

#include <string>
#include <vector>

#include <fabric/config.h>

namespace numerics {

struct Config {
  std::vector<std::string> models;
  std::vector<std::string> precisions;
  std::vector<std::string> strategies;
  int steps = 20;
  int processes = 2;
  std::string single_run;
  FABRIC_FIELDS(Config, models, precisions, strategies, steps, processes, single_run)
  FABRIC_HELP(Config, (models, "digits, transformer, encoder; default: all"),
              (precisions, "default: all that there are"), (strategies, "default: all that are registered"),
              (steps, "of training; Python recorded 20"), (processes, "of strategies with several"),
              (single_run,
               "for the program itself: trains one precision of one strategy, and writes what came of it there"))
  void validate() const {
    if (steps < 1 || processes < 1) throw fabric::ConfigError("steps and processes must be positive");
    if (!single_run.empty() && (strategies.size() != 1 || precisions.size() != 1))
      throw fabric::ConfigError("single_run takes one strategy and one precision");
  }
};

int run(Config config);

}  // namespace numerics

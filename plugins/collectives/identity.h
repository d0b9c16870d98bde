#pragma once

#include <chrono>
#include <memory>
#include <string>

#include <c10/core/Device.h>

#include <fabric/base/env_reader.h>
#include <fabric/plugins/collectives/process_group.h>

namespace fabric::collectives {

/// Who the ranks of a group are, and what was asked for.
struct Identity {
  ProcessGroup::Config config;
  std::string backend;  // the kind in use
  std::string name;
  int rank = 0;
  int size = 1;
  c10::Device device = c10::kCPU;
  std::chrono::milliseconds timeout{};
  RankInfo ranks;       // in the whole job
  std::string outside;  // on ranks that are no members: what their operations throw
  std::shared_ptr<EnvReader> env = process_env();
};

}  // namespace fabric::collectives

#pragma once

#include <cstdlib>
#include <string>

#include <fabric/plugins/collectives/process_group.h>

namespace ranks {

inline fabric::RankInfo rank_info_from_env() {
  auto number = [](const char* name) { return std::stoi(std::getenv(name)); };
  fabric::RankInfo info;
  info.rank = number("RANK");
  info.world_size = number("WORLD_SIZE");
  info.local_rank = number("LOCAL_RANK");
  info.local_world_size = number("LOCAL_WORLD_SIZE");
  info.main_address = std::getenv("MASTER_ADDR");
  info.main_port = number("MASTER_PORT");
  return info;
}

/// A group of the test's ranks over Gloo; short timeout, so that a defect ends the test.
inline fabric::ProcessGroup group_from_env(fabric::ProcessGroup::Config config = {.timeout_seconds = 30}) {
  return fabric::ProcessGroup::create(config, rank_info_from_env(), c10::kCPU);
}

}  // namespace ranks

#include "plugins/environments/checks.h"

#include <fabric/error.h>

namespace fabric {

void check_index(const std::string& index_name, int index, const std::string& count_name, int count) {
  if (count >= 1 && index >= 0 && index < count) return;
  throw ConfigError("the environment variables " + index_name + "=" + std::to_string(index) + " and " + count_name +
                    "=" + std::to_string(count) + " contradict each other: " + index_name + " must be from 0 to " +
                    count_name + " - 1, and " + count_name + " at least 1");
}

void check_product(const std::string& source, int world_size, int devices, int num_nodes) {
  if (world_size == 1LL * devices * num_nodes) return;
  throw ConfigError(
      source + " started " + std::to_string(world_size) + " ranks, but devices=" + std::to_string(devices) +
      " with num_nodes=" + std::to_string(num_nodes) + " needs " + std::to_string(1LL * devices * num_nodes) +
      ". Give devices the number of ranks per node and num_nodes the number of nodes, or start as many ranks");
}

int port_or(const EnvReader& env, const std::string& name, int fallback) {
  return env.get_int(name, 1, 65535).value_or(fallback);
}

}  // namespace fabric

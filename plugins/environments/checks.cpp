#include "plugins/environments/checks.h"

#include <algorithm>
#include <cctype>
#include <cstdint>

#include <fabric/base/error.h>

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

void check_node_count(const std::string& source, int said, int num_nodes) {
  if (said == 0 || said == num_nodes) return;
  throw ConfigError(source + " uses " + std::to_string(said) + (said == 1 ? " node" : " nodes") +
                    ", but num_nodes=" + std::to_string(num_nodes) + ". Give both the same number");
}

std::optional<int> count_visible_devices(const EnvReader& env) {
  auto list = env.get("CUDA_VISIBLE_DEVICES");
  if (!list) return std::nullopt;
  // An index, GPU-<uuid> or MIG-<uuid>; "", "-1" and "NoDevFiles" stand for none.
  bool any = !list->empty() && (std::isdigit(static_cast<unsigned char>(list->front())) || list->starts_with("GPU-") ||
                                list->starts_with("MIG-"));
  return any ? static_cast<int>(std::count(list->begin(), list->end(), ',')) + 1 : 0;
}

bool sees_one_device(const EnvReader& env) { return count_visible_devices(env) == 1; }

std::string job_name(const EnvReader& env, const std::string& of_launcher) {
  auto given = env.get_or("FABRIC_JOB_ID", "");
  if (given.empty()) return of_launcher;
  return of_launcher + (of_launcher.empty() ? "job " : ", job ") + given;
}

std::vector<int> ports_beside(int derived, const std::string& job) {
  constexpr std::size_t kPorts = 8;
  constexpr int kFirst = 20000, kCount = 10000;
  std::uint64_t hash = 14695981039346656037ull;  // FNV-1a
  for (unsigned char letter : job) hash = (hash ^ letter) * 1099511628211ull;
  std::vector<int> ports;
  while (ports.size() < kPorts) {
    hash = hash * 6364136223846793005ull + 1442695040888963407ull;
    int port = kFirst + static_cast<int>((hash >> 33) % kCount);
    if (port != derived && std::find(ports.begin(), ports.end(), port) == ports.end()) ports.push_back(port);
  }
  return ports;
}

int port_or(const EnvReader& env, const std::string& name, int fallback) {
  return env.get_int(name, 1, 65535).value_or(fallback);
}

}  // namespace fabric

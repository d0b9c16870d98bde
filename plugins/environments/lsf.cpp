#include <fabric/plugins/environments/lsf.h>

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <vector>

#include <fabric/base/error.h>

#include "plugins/environments/checks.h"

namespace fabric {
namespace {

std::string own_host_name() {
  char name[256] = "";
  gethostname(name, sizeof name - 1);
  return name;
}

std::string short_name(const std::string& host) { return host.substr(0, host.find('.')); }

std::vector<std::string> read_rank_file(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw ConfigError("the rank file named by LSB_DJOB_RANKFILE cannot be read: " + path);
  std::vector<std::string> hosts;
  for (std::string host; file >> host;) hosts.push_back(host);
  if (hosts.size() < 2)
    throw ConfigError(
        "the rank file named by LSB_DJOB_RANKFILE must name the launch node and at least one more host, but "
        "holds " +
        std::to_string(hosts.size()) + ": " + path);
  hosts.erase(hosts.begin());
  return hosts;
}

std::vector<std::string> first_occurrences(const std::vector<std::string>& hosts) {
  std::vector<std::string> nodes;
  for (const auto& host : hosts)
    if (std::find(nodes.begin(), nodes.end(), host) == nodes.end()) nodes.push_back(host);
  return nodes;
}

int index_of(const std::string& host, const std::vector<std::string>& nodes) {
  for (std::size_t i = 0; i < nodes.size(); ++i)
    if (nodes[i] == host) return static_cast<int>(i);
  for (std::size_t i = 0; i < nodes.size(); ++i)
    if (short_name(nodes[i]) == short_name(host)) return static_cast<int>(i);
  throw ConfigError("this host, " + host + ", is not in the rank file named by LSB_DJOB_RANKFILE");
}

RankInfo read_lsf(const EnvReader& env, const std::string& host) {
  const std::string who = "the environment 'lsf' (started by jsrun)";
  RankInfo info{.source = "lsf"};
  info.world_size = env.require_int("JSM_NAMESPACE_SIZE", who);
  info.rank = env.require_int("JSM_NAMESPACE_RANK", who);
  info.local_rank = env.require_int("JSM_NAMESPACE_LOCAL_RANK", who);
  info.local_world_size = env.get_int("JSM_NAMESPACE_LOCAL_SIZE").value_or(0);
  check_index("JSM_NAMESPACE_RANK", info.rank, "JSM_NAMESPACE_SIZE", info.world_size);
  if (info.local_world_size > 0)
    check_index("JSM_NAMESPACE_LOCAL_RANK", info.local_rank, "JSM_NAMESPACE_LOCAL_SIZE", info.local_world_size);
  auto nodes = first_occurrences(read_rank_file(env.require("LSB_DJOB_RANKFILE", who)));
  info.num_nodes = static_cast<int>(nodes.size());
  info.node_rank = index_of(host, nodes);
  info.main_address = nodes.front();
  int job = env.require_int("LSB_JOBID", who);
  // Each jsrun of a job has a name of its own in PMIx.
  auto step = env.get_or("PMIX_NAMESPACE", "");
  info.job = job_name(env, "LSF job " + std::to_string(job) + (step.empty() ? "" : ", step " + step));
  info.main_port = port_or(env, "MASTER_PORT", 10000 + job % 1000);
  if (!env.has("MASTER_PORT")) info.spare_ports = ports_beside(info.main_port, info.job);
  return info;
}

}  // namespace

LsfEnvironment::LsfEnvironment(const EnvReader& env, std::string host)
    : ExternalEnvironment(read_lsf(env, host.empty() ? own_host_name() : host), sees_one_device(env)) {}

bool LsfEnvironment::detect(const EnvReader& env) {
  for (const char* name : {"LSB_JOBID", "LSB_DJOB_RANKFILE", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_SIZE"})
    if (!env.has(name)) return false;
  return true;
}

}  // namespace fabric

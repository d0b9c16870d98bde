#include "launcher/run/hosts/hosts_plan.h"

#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "launcher/rendezvous/secret.h"
#include "launcher/run/hosts/host_flags.h"
#include "launcher/run/job_secret.h"

namespace fabric::run {
namespace {

/// Signs of life come every second at least; fewer than that many seconds without are no silence.
constexpr double kLeastPatience = 5;

// As the shell names it, links and all, for it is looked up elsewhere.
std::string present_folder(const EnvReader& env) {
  auto named = env.get_or("PWD", "");
  struct stat one, other;
  if (named.starts_with("/") && stat(named.c_str(), &one) == 0 && stat(".", &other) == 0 &&
      one.st_dev == other.st_dev && one.st_ino == other.st_ino)
    return named;
  char path[PATH_MAX];
  return getcwd(path, sizeof path) ? path : "/";
}

/// One that was given serves for nodes that are started by hand, too. Children of this process do not get it.
std::string take_secret(const EnvReader& env) {
  auto secret = env.get_or(kSecretVariable, "");
  wipe_secret();
  return secret.empty() ? rendezvous::in_hex(rendezvous::random_key()) : secret;
}

bool are_all_here(const std::vector<Host>& hosts) {
  return std::all_of(hosts.begin(), hosts.end(),
                     [](const Host& host) { return !loopback_addresses({bare_name(host)}).empty(); });
}

}  // namespace

HostsPlan::HostsPlan(const Options& options, const EnvReader& env)
    : options_(options),
      timing_(rendezvous::parse_timing(options.rdzv_conf)),
      secret_(take_secret(env)),
      id_(options.run_id.empty() ? rendezvous::in_hex(rendezvous::random_key()).substr(0, 16) : options.run_id),
      folder_(present_folder(env)) {}

void HostsPlan::lead(std::size_t index, const HostHello& hello) {
  leader_ = index;
  bool is_port_given = options_.endpoint_port_given && options_.endpoint_ports.front() > 0;
  port_ = is_port_given ? options_.endpoint_ports.front() : hello.port;
  endpoints_ = options_.endpoint_hosts;
  if (!endpoints_.empty()) return;
  endpoints_ = {bare_name(options_.hosts[index])};
  for (const auto& address : hello.addresses) endpoints_.push_back(address);
  if (options_.hosts.size() == 1) return;
  // On another machine the loopback is another machine's.
  bool all_here = loopback_addresses({endpoints_.front()}).size() > 0 && are_all_here(options_.hosts);
  if (!all_here) std::erase_if(endpoints_, [](const auto& one) { return !loopback_addresses({one}).empty(); });
  if (endpoints_.empty()) endpoints_ = {bare_name(options_.hosts[index])};
}

HostJob HostsPlan::job_for(std::size_t index) const {
  const auto& host = options_.hosts[index];
  HostJob job{.secret = secret_, .folder = folder_, .hosts_rendezvous = index == *leader_};
  job.patience = std::max(kLeastPatience, timing_.heartbeat * timing_.misses);
  job.endpoints = endpoints_;
  if (options_.max_nodes > 1) job.port = port_;
  for (const auto& one : options_.hosts) job.expected.push_back(bare_name(one));
  auto nodes = std::to_string(options_.min_nodes);
  if (options_.max_nodes != options_.min_nodes) nodes += ':' + std::to_string(options_.max_nodes);
  job.words = options_.host_words;
  auto add = [&](const std::string& flag, const std::string& value) { job.words.push_back(flag + "=" + value); };
  add("--nnodes", nodes);
  // One beyond the number of nodes takes whatever place it gets.
  bool has_place = options_.max_nodes > 1 && index < static_cast<std::size_t>(options_.max_nodes);
  if (has_place) add("--node-rank", std::to_string(index));
  add("--nproc-per-node", workers_of(host, options_));
  add("--rdzv-id", id_);
  add("--grace", std::to_string(options_.grace_seconds));
  if (!options_.report.empty() && index == *leader_) add("--report", options_.report);
  job.words.push_back("--");
  job.words.insert(job.words.end(), options_.command.begin(), options_.command.end());
  return job;
}

}  // namespace fabric::run

#include "launcher/run/hosts/host_flags.h"

#include <algorithm>
#include <cstdlib>

#include <fabric/base/error.h>

#include "launcher/rendezvous/settings.h"

namespace fabric::run {
namespace {

/// Told to each host in another way, or not at all.
constexpr const char* kNotHandedOn[] = {"nproc_per_node", "nnodes",     "node_rank", "rdzv_endpoint", "rdzv_id",
                                        "local_addr",     "standalone", "mpi",       "hosts",         "hostfile",
                                        "ssh_args",       "copy",       "grace",     "report"};

void check_others(const Settings& given, const WasGiven& was_given, const std::string& flag) {
  auto refuse = [&](const char* other, const std::string& why) {
    throw ConfigError(std::string(other) + " cannot stand with " + flag + ": " + why);
  };
  if (given.mpi) refuse("--mpi", "mpirun has a --host of its own");
  if (given.standalone) refuse("--standalone", "it asks for one node, this machine");
  if (was_given("node_rank")) refuse("--node-rank", "the order of the list is that of the nodes");
  if (!given.local_addr.text.empty()) refuse("--local-addr", "each host has an address of its own; see --iface");
  if (rendezvous::parse_timing(given.rdzv_conf.text).is_host)
    refuse("--rdzv-conf is_host", "the first host of the list hosts the rendezvous");
}

void choose_number(Options& options, const std::string& flag) {
  auto count = static_cast<int>(options.hosts.size());
  if (!options.nodes_given) options.min_nodes = options.max_nodes = count;
  if (options.min_nodes > count)
    throw ConfigError("--nnodes " + std::to_string(options.min_nodes) + ": " + flag + " names " +
                      std::to_string(count) + (count == 1 ? " host" : " hosts"));
  // Of an elastic job those that are left over are spares; a fixed one has no use for them.
  bool is_fixed = options.min_nodes == options.max_nodes;
  if (is_fixed) options.hosts.resize(static_cast<std::size_t>(options.max_nodes));
}

void check_slots(const Options& options, const std::string& flag) {
  if (!options.nproc_given || options.nproc.find_first_not_of("0123456789") != std::string::npos) return;
  int workers = std::atoi(options.nproc.c_str());
  for (const auto& host : options.hosts) {
    int most = host.max_slots > 0 ? host.max_slots : host.slots;
    if (most > 0 && workers > most)
      throw ConfigError("-n " + options.nproc + " is for each host, and " + flag + " gives " + host.name + " " +
                        std::to_string(most) + (most == 1 ? " slot" : " slots") +
                        "; leave -n out, and each host has as many ranks as slots");
  }
}

void add_words(const std::string& name, const Tree& value, std::vector<std::string>& words) {
  if (value.is_map()) {
    for (const auto& [key, entry] : value.as_map())
      words.push_back("--" + name + "=" + key + "=" + Word::from_tree(entry).text);
    return;
  }
  auto text = value.is_null() ? "" : Word::from_tree(value).text;
  if (!text.empty()) words.push_back("--" + name + "=" + text);
}

}  // namespace

void choose_hosts(const Settings& given, const Tree& values, const WasGiven& was_given, Options& options) {
  const auto &list = given.hosts.text, &file = given.hostfile.text;
  if (list.empty() && file.empty()) {
    // As of --hosts "$HOSTS" without HOSTS: not a job of this machine alone.
    for (const char* flag : {"hosts", "hostfile"})
      if (was_given(flag)) throw ConfigError("--" + std::string(flag) + " is empty and names no host");
    return;
  }
  if (!list.empty() && !file.empty()) throw ConfigError("--hosts and --hostfile: give one of them");
  std::string flag = list.empty() ? "--hostfile" : "--hosts";
  options.hosts = list.empty() ? read_hostfile(file) : parse_hosts(list);
  options.ssh_args = split_words(given.ssh_args.text, "--ssh-args");
  options.copies_program = given.copy;
  check_others(given, was_given, flag);
  choose_number(options, flag);
  check_slots(options, flag);
  for (const auto& [name, value] : values.as_map()) {
    auto is = [&](const char* other) { return name == other; };
    if (std::any_of(std::begin(kNotHandedOn), std::end(kNotHandedOn), is)) continue;
    if (was_given(name) || value.is_map()) add_words(name, value, options.host_words);
  }
}

std::string workers_of(const Host& host, const Options& options) {
  return options.nproc_given || host.slots == 0 ? options.nproc : std::to_string(host.slots);
}

}  // namespace fabric::run

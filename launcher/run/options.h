#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <fabric/base/env_reader.h>
#include <fabric/base/error.h>

#include "launcher/run/hosts/host_list.h"

namespace fabric::run {

/// What `fabric run` was told, by flags and by PET_* variables; checked, but nothing looked up on the machine yet.
struct Options {
  std::string nproc = "1";  // a number, auto, cpu or gpu
  bool nproc_given = false;
  int min_nodes = 1, max_nodes = 1;
  bool nodes_given = false;
  int node_rank = 0;
  bool node_rank_given = false;
  std::string run_id;
  /// Where nodes meet: hosts of which each may be the right one, and ports of which the first free one is taken.
  std::string rdzv_endpoint;
  std::vector<std::string> endpoint_hosts;
  std::vector<int> endpoint_ports;
  bool endpoint_port_given = false;
  std::optional<bool> hosts_rendezvous;  // nothing: as the flags and the endpoint say
  std::string rdzv_backend, rdzv_conf;
  std::string iface, local_addr;
  /// On each a launcher is started over ssh, and this one runs no workers itself; empty: it does.
  std::vector<Host> hosts;
  std::vector<std::string> ssh_args;
  bool copies_program = false;
  bool started_together = false;            // on the hosts of one list, of which this machine is one
  std::vector<std::string> host_words;      // the flags that go to each of them
  std::vector<std::string> expected_nodes;  // by node rank, where a scheduler told
  std::string master_addr;
  int master_port = 0;  // 0: a free one
  std::string role = "default";
  bool virtual_local_rank = false;

  int max_restarts = 0;
  double grace_seconds = 30;
  std::vector<int> stop_on, forward;
  bool pid_namespace = false;
  /// Seconds that the other workers may go on once rank 0 has ended well; 0: as long as they like.
  double require_all_seconds = 0;

  double heartbeat_timeout = 600, heartbeat_warmup = 1800, progress_timeout = 0;

  std::string log_dir;
  std::string redirects = "0", tee = "0";  // 0, 1, 2, 3 or rank:value,…
  std::string local_ranks_filter;          // empty: all
  std::string prefix_template;
  std::string report;

  std::string bind_to = "none";
  std::vector<std::pair<std::string, std::string>> variables;
  std::string workdir;
  std::string accelerator, strategy, devices, precision;

  bool mpi = false;
  int mpi_ranks = 0;  // of mpirun, which is then the only worker
  bool is_module = false, no_python = false;
  std::vector<std::string> command;  // the program and its arguments, byte by byte
};

/// A word that asked for something else than a run: print the text and end with 0.
struct Information {
  std::string text;
};

struct Parsed {
  Options options;
  std::optional<Information> information;
};

/// Reads the words behind `fabric run`. Throws ConfigError for an unknown flag (with the nearest name), a bad value, or
/// a missing program.
Parsed parse_options(const std::vector<std::string>& words, const EnvReader& env);
/// All long flags, for completion: "--nproc-per-node".
std::vector<std::string> flag_names();

/// Which of stdout (bit 0) and stderr (bit 1) of a local rank a choice like "3" or "0:1,12:3" names. Throws
/// ConfigError.
int streams_of(const std::string& choice, int local_rank, const std::string& flag);
/// "0,2" as numbers. Throws ConfigError.
std::vector<int> parse_ranks(const std::string& text, const std::string& flag);
/// "SIGTERM,INT,10" as numbers. Throws ConfigError naming the nearest signal.
std::vector<int> parse_signals(const std::string& text, const std::string& flag);

}  // namespace fabric::run

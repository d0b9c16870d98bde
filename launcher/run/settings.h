#pragma once

#include <string>

#include <fabric/config.h>

namespace fabric::run {

/// A value as it was typed: on the command line and in variables a word, in a file also a number. What it means is
/// checked once all settings are known.
struct Word {
  Word(const char* text = "") : text(text) {}
  explicit Word(std::string text) : text(std::move(text)) {}
  std::string text;

  /// Throws ConfigError for a list or a map.
  static Word from_tree(const Tree& tree);
  /// A number where the text is one, so that files show it unquoted.
  Tree to_tree() const;
};

/// What `fabric run` may be told. This list drives flags, PET_ variables, --config, --print-config and --help.
struct Settings {
  // --- the job
  Word nproc_per_node = "1", nnodes = "1", node_rank = "0", rdzv_endpoint, master_addr, master_port, rdzv_id, rdzv_conf,
       local_addr, iface;
  bool standalone = false;
  Word role = "default";
  bool mpi = false;
  // --- hosts that are reached over ssh
  Word hosts, hostfile, ssh_args;
  bool copy = false;
  // --- ends and restarts
  Word max_restarts = "0", grace, stop_on, forward, require_all = "0";
  bool pid_namespace = false;
  Word heartbeat_timeout = "600", heartbeat_warmup = "1800", progress_timeout = "0";
  // --- output
  Word log_dir, redirects = "0", tee = "0", local_ranks_filter, log_line_prefix_template, report;
  // --- the workers
  Word bind_to = "none";
  OrderedMap<Word> env;
  Word workdir, accelerator, strategy, devices, precision;
  bool module = false, no_python = false, virtual_local_rank = false;
  // --- accepted for torchrun's sake
  Word rdzv_backend, monitor_interval = "0.1", start_method, event_log_handler, numa_binding;
  bool run_path = false;

  FABRIC_FIELDS(Settings, nproc_per_node, nnodes, node_rank, rdzv_endpoint, master_addr, master_port, rdzv_id,
                rdzv_conf, local_addr, iface, standalone, role, mpi, hosts, hostfile, ssh_args, copy, max_restarts,
                grace, stop_on, forward, require_all, pid_namespace, heartbeat_timeout, heartbeat_warmup,
                progress_timeout, log_dir, redirects, tee, local_ranks_filter, log_line_prefix_template, report,
                bind_to, env, workdir, accelerator, strategy, devices, precision, module, no_python, virtual_local_rank,
                rdzv_backend, monitor_interval, start_method, event_log_handler, numa_binding, run_path)
  FABRIC_HELP(Settings, (nproc_per_node, "workers on this node: a number, auto, cpu or gpu"),
              (nnodes, "nodes of the job, or MIN:MAX of them"),
              (node_rank, "index of this node (default: the rendezvous gives one)"),
              (rdzv_endpoint, "HOST[:PORT] where several nodes meet (port 29400)"),
              (master_addr, "address of rank 0 (default: one that all nodes reach)"),
              (master_port, "port of rank 0's store (default: a free one)"),
              (rdzv_id, "name of the job, the same on all of its nodes"),
              (rdzv_conf, "NAME=VALUE,… for several nodes, as join_timeout=600"),
              (local_addr, "address of this node for the others (default: all are tried)"),
              (iface, "network interface of this node for the others"),
              (standalone, "one node and a free port, whatever else is given"),
              (role, "a word for the workers, handed out as ROLE_NAME"), (mpi, "let mpirun start the workers"),
              (hosts, "start a launcher on each over ssh: HOST[:RANKS],… or n[1-3,7]:4"),
              (hostfile, "the same from a file: lines of HOST slots=4"),
              (ssh_args, "more arguments for ssh, as \"-p 2222 -i key\""),
              (copy, "bring this program along to hosts that lack it"),
              (max_restarts, "how often all workers are started again after a failure"),
              (grace, "seconds between asking workers to stop and killing them (default 30)"),
              (stop_on, "signals that stop the job (default TERM,INT,HUP,QUIT)"),
              (forward, "signals that are passed on while the job goes on (default USR1,USR2)"),
              (require_all, "seconds for the others to end after rank 0 has (0: no limit)"),
              (pid_namespace, "run the workers in a PID namespace: nothing can survive"),
              (heartbeat_timeout, "seconds without a heartbeat that make a hang; 0: never"),
              (heartbeat_warmup, "seconds allowed between the first two heartbeats"),
              (progress_timeout, "seconds without a new step that make a hang; 0: never"),
              (log_dir, "folder for per-rank files and error files; /dev/null: none"),
              (redirects, "to files only: 0, 1 stdout, 2 stderr, 3 both, or RANK:N,…"),
              (tee, "to files as well as to the console: as --redirects"),
              (local_ranks_filter, "local ranks whose output reaches the console"),
              (log_line_prefix_template, "prefix of lines; knows ${role_name} ${local_rank} ${rank} ${hostname}"),
              (report, "file for a report of how the job ended, as JSON"),
              (bind_to, "processors of each worker: core, socket, numa or none"),
              (env, "NAME=VALUE, or NAME as it is here, for the workers; may come several times"),
              (workdir, "folder in which they start"), (accelerator, "as FABRIC_ACCELERATOR, which Fabric reads"),
              (strategy, "as FABRIC_STRATEGY"),
              (devices, "as FABRIC_DEVICES; also the number of workers unless that is given"),
              (precision, "as FABRIC_PRECISION"), (module, "the program is a Python module"),
              (no_python, "the program is no Python script, even if it is named .py"),
              (virtual_local_rank, "LOCAL_RANK=0 and one visible GPU for each worker"),
              (rdzv_backend, "static: node 0 hosts; c10d: the node that the endpoint names"),
              (monitor_interval, "has no effect: ends are seen at once"), (start_method, "has no effect"),
              (event_log_handler, "null only"), (numa_binding, "node is --bind-to numa, socket is --bind-to socket"),
              (run_path, "has no effect"))
};

}  // namespace fabric::run

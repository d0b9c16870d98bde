#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>

#include <algorithm>

#include <fabric/base/nearest_name.h>
#include <fabric/version.h>

#include "launcher/os/signal_name.h"
#include "launcher/rendezvous/settings.h"
#include "launcher/run/options.h"

namespace fabric::run {
namespace {

/// Values as they were typed; checked and converted after all of them are known.
struct Typed {
  std::string nnodes = "1", nproc = "1", node_rank = "0", master_port, max_restarts = "0", grace, stop_on, forward;
  std::string monitor_interval = "0.1", numa_binding, start_method, event_log_handler;
  std::string heartbeat_timeout = "600", heartbeat_warmup = "1800", progress_timeout = "0";
  std::string require_all = "0";
  std::vector<std::string> variables;
  bool standalone = false, run_path = false, help = false, version = false;
  Options options;
};

class CommandLine {
 public:
  CommandLine()
      : app_("Starts a program as several ranks; everything behind the program's name is its own.", "fabric run") {
    app_.set_help_flag();
    app_.prefix_command();
    app_.get_formatter()->column_width(44);
    add_job();
    add_ending();
    add_output();
    add_program();
    add_torchrun();
  }

  CLI::App& app() { return app_; }
  Typed& typed() { return typed_; }

 private:
  // torchrun's rule: PET_ and the long name; both --a-b and --a_b are the same flag.
  std::string spellings(const std::string& names, std::string& variable) {
    auto long_at = names.find("--") + 2;
    auto name = names.substr(long_at, std::min(names.find(',', long_at), names.size()) - long_at);
    std::string all = names, underscored;
    for (std::size_t at = names.find("--"); at != names.npos; at = names.find("--", at + 2)) {
      auto end = std::min(names.find(',', at), names.size());
      auto other = names.substr(at, end - at);
      std::replace(other.begin() + 2, other.end(), '-', '_');
      if (names.find(other) == names.npos && all.find("," + other + ",") == all.npos) underscored += "," + other;
    }
    variable = "PET_";
    for (char letter : name) variable += letter == '-' ? '_' : static_cast<char>(toupper(letter));
    return all + underscored;
  }

  CLI::Option* value(const std::string& names, std::string& target, const std::string& text) {
    std::string variable;
    auto all = spellings(names, variable);
    auto* option = app_.add_option(all, target, text)->envname(variable)->take_last();
    return option->group(group_);
  }

  void flag(const std::string& names, bool& target, const std::string& text) {
    std::string variable;
    auto all = spellings(names, variable);
    app_.add_flag(all, target, text)->envname(variable)->take_last()->group(group_);
  }

  void add_job() {
    group_ = "The job";
    value("-n,--nproc-per-node", typed_.nproc, "workers on this node: a number, auto, cpu or gpu");
    value("--nnodes", typed_.nnodes, "nodes of the job, or MIN:MAX of them");
    value("--node-rank", typed_.node_rank, "index of this node (default: the rendezvous gives one)");
    value("--rdzv-endpoint", typed_.options.rdzv_endpoint, "HOST[:PORT] where several nodes meet (port 29400)");
    value("--master-addr", typed_.options.master_addr, "address of rank 0 (default: one that all nodes reach)");
    value("--master-port", typed_.master_port, "port of rank 0's store (default: a free one)");
    value("--rdzv-id", typed_.options.run_id, "name of the job, the same on all of its nodes");
    value("--rdzv-conf", typed_.options.rdzv_conf, "NAME=VALUE,… for several nodes, as join_timeout=600");
    value("--local-addr", typed_.options.local_addr, "address of this node for the others (default: all are tried)");
    value("--iface", typed_.options.iface, "network interface of this node for the others");
    flag("--standalone", typed_.standalone, "one node and a free port, whatever else is given");
    value("--role", typed_.options.role, "a word for the workers, handed out as ROLE_NAME");
    flag("--mpi", typed_.options.mpi, "let mpirun start the workers");
  }

  void add_ending() {
    group_ = "Ends and restarts";
    value("--max-restarts", typed_.max_restarts, "how often all workers are started again after a failure");
    value("--grace,--shutdown-timeout", typed_.grace,
          "seconds between asking workers to stop and killing them (default 30)");
    value("--stop-on,--signals-to-handle", typed_.stop_on, "signals that stop the job (default TERM,INT,HUP,QUIT)");
    value("--forward", typed_.forward, "signals that are passed on while the job goes on (default USR1,USR2)");
    value("--require-all", typed_.require_all, "seconds for the others to end after rank 0 has (default: no limit)");
    flag("--pid-namespace", typed_.options.pid_namespace, "run the workers in a PID namespace: nothing can survive");
    value("--heartbeat-timeout", typed_.heartbeat_timeout, "seconds without a heartbeat that make a hang; 0: never");
    value("--heartbeat-warmup", typed_.heartbeat_warmup, "seconds allowed between the first two heartbeats");
    value("--progress-timeout", typed_.progress_timeout, "seconds without a new step that make a hang; 0: never");
  }

  void add_output() {
    group_ = "Output";
    value("--log-dir", typed_.options.log_dir, "folder for per-rank files and error files; /dev/null: none");
    value("-r,--redirects", typed_.options.redirects, "to files only: 0, 1 stdout, 2 stderr, 3 both, or RANK:N,…");
    value("-t,--tee", typed_.options.tee, "to files as well as to the console: as --redirects");
    value("--local-ranks-filter", typed_.options.local_ranks_filter, "local ranks whose output reaches the console");
    value("--log-line-prefix-template", typed_.options.prefix_template,
          "prefix of lines; knows ${role_name} ${local_rank} ${rank} ${hostname}");
    value("--report", typed_.options.report, "file for a report of how the job ended, as JSON");
  }

  void add_program() {
    group_ = "The workers";
    value("--bind-to", typed_.options.bind_to, "processors of each worker: core, socket, numa or none");
    app_.add_option("--env", typed_.variables, "NAME=VALUE for the workers; may come several times")
        ->expected(1)
        ->take_all()
        ->group(group_);
    value("--workdir", typed_.options.workdir, "folder in which they start");
    value("--accelerator", typed_.options.accelerator, "as FABRIC_ACCELERATOR, which Fabric reads");
    value("--strategy", typed_.options.strategy, "as FABRIC_STRATEGY");
    value("--devices", typed_.options.devices, "as FABRIC_DEVICES; also the number of workers unless that is given");
    value("--precision", typed_.options.precision, "as FABRIC_PRECISION");
    flag("-m,--module", typed_.options.is_module, "the program is a Python module");
    flag("--no-python", typed_.options.no_python, "the program is no Python script, even if it is named .py");
    flag("--virtual-local-rank", typed_.options.virtual_local_rank, "LOCAL_RANK=0 and one visible GPU for each worker");
    app_.add_flag("-h,--help", typed_.help, "this text")->group(group_);
    app_.add_flag("--version", typed_.version, "the version")->group(group_);
  }

  void add_torchrun() {
    group_ = "Accepted for torchrun's sake";
    value("--rdzv-backend", typed_.options.rdzv_backend,
          "static: node 0 hosts; c10d: the node that the endpoint names");
    value("--monitor-interval", typed_.monitor_interval, "has no effect: ends are seen at once");
    value("--start-method", typed_.start_method, "has no effect");
    value("--event-log-handler", typed_.event_log_handler, "null only");
    value("--numa-binding", typed_.numa_binding, "node is --bind-to numa, socket is --bind-to socket");
    flag("--run-path", typed_.run_path, "has no effect");
  }

  CLI::App app_;
  Typed typed_;
  std::string group_;
};

int integer(const std::string& text, const std::string& flag, int low, int high) {
  char* end = nullptr;
  long value = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end || value < low || value > high)
    throw ConfigError(flag + " " + text + ": give a whole number from " + std::to_string(low) + " to " +
                      std::to_string(high));
  return static_cast<int>(value);
}

double seconds(const std::string& text, const std::string& flag) {
  char* end = nullptr;
  double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end || !(value >= 0 && value < 1e8))
    throw ConfigError(flag + " " + text + ": give a number of seconds, 0 or more");
  return value;
}

constexpr int kRendezvousPort = 29400;

void choose_nodes(Typed& typed) {
  auto& options = typed.options;
  auto colon = typed.nnodes.find(':');
  options.min_nodes = integer(typed.nnodes.substr(0, colon), "--nnodes", 1, 65536);
  options.max_nodes = colon == std::string::npos
                          ? options.min_nodes
                          : integer(typed.nnodes.substr(colon + 1), "--nnodes", options.min_nodes, 65536);
  options.node_rank = integer(typed.node_rank, "--node-rank", 0, 65535);
  if (!typed.master_port.empty()) options.master_port = integer(typed.master_port, "--master-port", 0, 65535);
  if (typed.standalone) {
    options.min_nodes = options.max_nodes = 1;
    options.node_rank = options.master_port = 0;
    options.master_addr.clear();
    options.rdzv_endpoint.clear();
  }
  rendezvous::parse_timing(options.rdzv_conf);
  auto& endpoint = options.rdzv_endpoint;
  if (!endpoint.empty()) {
    // The colons of an IPv6 address are inside of brackets.
    auto port_at = endpoint.rfind(':');
    bool has_port = port_at != std::string::npos && endpoint.find(']', port_at) == std::string::npos;
    auto host = endpoint.substr(0, has_port ? port_at : std::string::npos);
    if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
    options.endpoint_hosts = {host};
    int port = kRendezvousPort;
    if (has_port) port = integer(endpoint.substr(port_at + 1), "--rdzv-endpoint " + endpoint, 0, 65535);
    options.endpoint_ports = {port};
    options.endpoint_port_given = has_port;
    if (port == 0 && options.max_nodes > 1)
      throw ConfigError("--rdzv-endpoint " + endpoint + ": all nodes must know the port; give one from 1 to 65535");
  }
  if (options.node_rank >= options.max_nodes)
    throw ConfigError("--node-rank " + typed.node_rank + ": there are " + typed.nnodes + " nodes, so the highest is " +
                      std::to_string(options.max_nodes - 1));
}

void choose_workers(Typed& typed, bool nproc_given) {
  auto& options = typed.options;
  options.nproc = typed.nproc;
  for (auto& letter : options.nproc) letter = static_cast<char>(tolower(letter));
  if (!nproc_given && !options.devices.empty()) {
    // `--devices 2` alone means two workers, and `--devices 0,3` the two of them.
    bool is_number = options.devices.find_first_not_of("0123456789") == std::string::npos;
    auto commas = std::count(options.devices.begin(), options.devices.end(), ',');
    options.nproc = is_number ? options.devices : commas ? std::to_string(commas + 1) : "auto";
  }
  if (options.nproc != "auto" && options.nproc != "cpu" && options.nproc != "gpu")
    integer(options.nproc, "--nproc-per-node", 1, 4096);
  if (!typed.numa_binding.empty()) {
    if (typed.numa_binding != "node" && typed.numa_binding != "socket")
      throw ConfigError("--numa-binding " + typed.numa_binding + ": node and socket can be had; see also --bind-to");
    options.bind_to = typed.numa_binding == "node" ? "numa" : "socket";
  }
  const std::vector<std::string> places{"core", "socket", "numa", "none"};
  if (std::find(places.begin(), places.end(), options.bind_to) == places.end())
    throw ConfigError("--bind-to " + options.bind_to + did_you_mean(options.bind_to, places));
  for (const auto& variable : typed.variables) {
    auto equal = variable.find('=');
    if (equal == 0 || equal == std::string::npos) throw ConfigError("--env " + variable + ": write NAME=VALUE");
    options.variables.emplace_back(variable.substr(0, equal), variable.substr(equal + 1));
  }
}

void choose_ending(Typed& typed, const EnvReader& env) {
  auto& options = typed.options;
  options.max_restarts = integer(typed.max_restarts, "--max-restarts", 0, 1000000);
  std::string grace_flag = "--grace";
  if (typed.grace.empty()) {
    typed.grace = env.get_or("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "30");
    grace_flag = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT";
  }
  options.grace_seconds = seconds(typed.grace, grace_flag);
  options.stop_on = parse_signals(typed.stop_on.empty() ? "TERM,INT,HUP,QUIT" : typed.stop_on, "--stop-on");
  for (int number : parse_signals(typed.forward.empty() ? "USR1,USR2" : typed.forward, "--forward")) {
    bool stops = std::find(options.stop_on.begin(), options.stop_on.end(), number) != options.stop_on.end();
    if (stops && !typed.forward.empty() && !typed.stop_on.empty())
      throw ConfigError(signal_name(number) + " is in --forward and in --stop-on; keep it in one of them");
    if (stops && !typed.forward.empty()) std::erase(options.stop_on, number);
    if (!stops || !typed.forward.empty()) options.forward.push_back(number);
  }
  options.require_all_seconds = seconds(typed.require_all, "--require-all");
  options.heartbeat_timeout = seconds(typed.heartbeat_timeout, "--heartbeat-timeout");
  options.heartbeat_warmup = seconds(typed.heartbeat_warmup, "--heartbeat-warmup");
  options.progress_timeout = seconds(typed.progress_timeout, "--progress-timeout");
}

void check_output(const Options& options) {
  streams_of(options.redirects, 0, "--redirects");
  streams_of(options.tee, 0, "--tee");
  parse_ranks(options.local_ranks_filter, "--local-ranks-filter");
}

void check_torchrun(const Typed& typed) {
  const auto& backend = typed.options.rdzv_backend;
  if (!backend.empty() && backend != "static" && backend != "c10d")
    throw ConfigError("--rdzv-backend " + backend + ": static and c10d are known; etcd is not offered");
  if (!typed.event_log_handler.empty() && typed.event_log_handler != "null")
    throw ConfigError("--event-log-handler " + typed.event_log_handler + ": only null; use --report FILE instead");
}

[[noreturn]] void fail_unknown(const std::string& word) {
  auto name = word.substr(0, word.find('='));
  auto names = flag_names();
  auto near = nearest_name(name, names);
  // `--nproc` and `--nprocs` are meant for --nproc-per-node, which is far from both by letters.
  for (const auto& other : names)
    if (near.empty() && name.size() > 5 &&
        (other.starts_with(name) || other.starts_with(name.substr(0, name.size() - 1))))
      near = other;
  throw ConfigError("unknown flag " + name + (near.empty() ? "" : "; did you mean " + near + "?") +
                    " `fabric run --help` lists all. Flags of the program stand behind its name");
}

}  // namespace

std::vector<std::string> flag_names() {
  CommandLine line;
  std::vector<std::string> names;
  for (const auto* option : line.app().get_options())
    for (const auto& name : option->get_lnames())
      if (name.find('_') == std::string::npos) names.push_back("--" + name);
  return names;
}

Parsed parse_options(const std::vector<std::string>& words, const EnvReader& env) {
  CommandLine line;
  auto& typed = line.typed();
  std::vector<std::string> reversed(words.rbegin(), words.rend());
  try {
    line.app().parse(reversed);
  } catch (const CLI::ParseError& error) {
    throw ConfigError(std::string(error.what()) + ". `fabric run --help` lists all flags");
  }
  if (typed.help) return {{}, Information{line.app().help()}};
  if (typed.version) return {{}, Information{std::string("fabric ") + FABRIC_VERSION + "\n"}};
  auto rest = line.app().remaining();
  if (!rest.empty() && rest[0] == "--")
    rest.erase(rest.begin());
  else if (!rest.empty() && rest[0].size() > 1 && rest[0][0] == '-')
    fail_unknown(rest[0]);
  if (rest.empty()) throw ConfigError("no program was given: fabric run [flags] PROGRAM [its arguments]");
  choose_nodes(typed);
  typed.options.nodes_given = typed.standalone || line.app().get_option("--nnodes")->count() > 0;
  typed.options.node_rank_given = line.app().get_option("--node-rank")->count() > 0 && !typed.standalone;
  choose_workers(typed, line.app().get_option("--nproc-per-node")->count() > 0);
  choose_ending(typed, env);
  check_output(typed.options);
  check_torchrun(typed);
  typed.options.command = rest;
  return {typed.options, std::nullopt};
}

}  // namespace fabric::run

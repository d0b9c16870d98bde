#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include <fabric/base/nearest_name.h>
#include <fabric/version.h>

#include "fabric/config/resolver_internal.h"
#include "fabric/config/scalar_internal.h"
#include "launcher/os/signal_name.h"
#include "launcher/rendezvous/settings.h"
#include "launcher/run/hosts/host_flags.h"
#include "launcher/run/options.h"
#include "launcher/run/settings.h"

namespace fabric::run {
namespace {

/// How a field of Settings is spelled besides its own name, and under which heading --help shows it.
struct Spelling {
  const char* field;
  const char* others;   // more names, each with a comma behind it
  const char* heading;  // of this field and those that follow it; null: as before
};
constexpr Spelling kSpellings[] = {
    {"nproc_per_node", "-n,", "The job"},
    {"nnodes", "--num-nodes,", nullptr},
    {"master_addr", "--main-address,", nullptr},
    {"master_port", "--main-port,", nullptr},
    {"hosts", "-H,", "Hosts over ssh"},
    {"max_restarts", "", "Ends and restarts"},
    {"grace", "--shutdown-timeout,", nullptr},
    {"stop_on", "--signals-to-handle,", nullptr},
    {"log_dir", "", "Output"},
    {"redirects", "-r,", nullptr},
    {"tee", "-t,", nullptr},
    {"bind_to", "", "The workers"},
    {"env", "-x,", nullptr},
    {"module", "-m,", nullptr},
    {"rdzv_backend", "", "Accepted for torchrun's sake"},
};

std::string dashed(std::string field) {
  std::replace(field.begin(), field.end(), '_', '-');
  return field;
}

// torchrun's rule: PET_ and the long name.
std::string variable_of(std::string field) {
  std::transform(field.begin(), field.end(), field.begin(), [](unsigned char letter) { return toupper(letter); });
  return "PET_" + field;
}

/// The flags of `fabric run`, made from the fields of Settings. Everything from the first word that is no flag on
/// belongs to the program.
class CommandLine {
 public:
  CommandLine()
      : app_("Starts a program as several ranks; everything behind the program's name is its own.", "fabric run") {
    app_.set_help_flag();
    app_.prefix_command();
    app_.get_formatter()->column_width(44);
    std::string heading;
    for (const auto& field : detail::schema_of<Settings>().fields) add_field(field, heading);
    for (auto [names, target, text] : {std::tuple{"-h,--help", &help_, "this text"},
                                       {"--version", &version_, "the version"},
                                       {"--print-config", &print_, "these settings, and where each comes from"}})
      app_.add_flag(names, *target, text)->group("Options");
    app_.add_option("--config", files_, "settings from a YAML or JSON file; the last of several wins")
        ->expected(1)
        ->take_all()
        ->type_name("FILE")
        ->group("Options");
    app_.footer(
        "Each setting may also stand in a file for --config (max_restarts: 3) and in a variable (PET_MAX_RESTARTS=3).\n"
        "A flag counts more than a variable, a variable more than a file.");
  }

  CLI::App& app() { return app_; }
  bool asks_for_help() const { return help_; }
  bool asks_for_version() const { return version_; }
  bool asks_for_settings() const { return print_; }

  /// Files, then variables, then flags.
  void resolve(detail::Resolver& resolver, const EnvReader& env) const {
    for (const auto& file : files_) resolver.apply_file(file);
    for (const auto& field : detail::schema_of<Settings>().fields) {
      if (field.name == "env") continue;
      for (const auto& variable : variables_of(field.name))
        if (auto value = env.get(variable); value && !value->empty()) {
          apply(resolver, field, {*value}, variable, env);
          break;
        }
    }
    for (const auto& field : detail::schema_of<Settings>().fields) {
      const auto* option = options_.at(field.name);
      if (option->count() > 0) apply(resolver, field, option->results(), "--" + dashed(field.name), env);
    }
  }

 private:
  void add_field(const Schema::Field& field, std::string& heading) {
    auto dashes = "--" + dashed(field.name), names = dashes;
    if (dashes != "--" + field.name) names += ",--" + field.name;
    for (const auto& spelling : kSpellings) {
      if (field.name != spelling.field) continue;
      if (spelling.heading) heading = spelling.heading;
      std::string more = spelling.others;
      if (!more.starts_with("--")) {
        names = more + names;
        continue;
      }
      // The field's own name is the one that errors say. Both --a-b and --a_b are the same flag.
      more.pop_back();
      names += "," + more;
      if (more.find('-', 2) != std::string::npos) names += ",--" + underscored(more.substr(2));
    }
    auto* option =
        field.schema().kind == Schema::Kind::boolean ? app_.add_flag(names) : app_.add_option(names)->expected(1);
    option->description(field.help)->group(heading);
    field.name == "env" ? option->take_all() : option->take_last();
    options_[field.name] = option;
  }

  // Of each long name that the flag has: torchrun calls some of them otherwise than we do.
  static std::vector<std::string> variables_of(const std::string& field) {
    std::vector<std::string> names{variable_of(field)};
    for (const auto& spelling : kSpellings) {
      std::string other = spelling.others;
      if (field != spelling.field || !other.starts_with("--")) continue;
      other.pop_back();
      names.push_back(variable_of(underscored(other.substr(2))));
    }
    return names;
  }

  static std::string underscored(std::string name) {
    std::replace(name.begin(), name.end(), '-', '_');
    return name;
  }

  static void apply(detail::Resolver& resolver, const Schema::Field& field, const std::vector<std::string>& texts,
                    const std::string& origin, const EnvReader& env) {
    Tree value = texts.back();
    if (field.schema().kind == Schema::Kind::boolean) {
      bool on = true;
      if (!detail::is_bool_word(texts.back(), on))
        throw ConfigError(origin + " " + texts.back() + ": give true or false");
      value = on;
    } else if (field.name == "env") {
      // A file's variables stay, those of the command line come on top.
      value = resolver.values().at(field.name);
      for (const auto& variable : texts) {
        auto equal = variable.find('='), size = std::min(equal, variable.size());
        if (size == 0) throw ConfigError("--env " + variable + ": write NAME=VALUE, or NAME for the value it has here");
        auto here = equal == std::string::npos ? env.get(variable) : variable.substr(equal + 1);
        if (!here) throw ConfigError("--env " + variable + ": it is not set here; write " + variable + "=VALUE");
        value[variable.substr(0, size)] = *here;
      }
    }
    resolver.apply_layer(Tree::Map{{field.name, std::move(value)}}, origin);
  }

  CLI::App app_;
  std::map<std::string, CLI::Option*> options_;
  std::vector<std::string> files_;
  bool help_ = false, version_ = false, print_ = false;
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

/// "host:5", "[fd00::1]:5", "[fe80::1%eth0]" or a bare IPv6 address as host and port; no port: an empty text.
std::pair<std::string, std::string> split_endpoint(const std::string& text, const std::string& flag) {
  auto fail = [&]() {
    throw ConfigError(flag + " " + text + ": write HOST, HOST:PORT, or an IPv6 address as [ADDRESS]:PORT");
  };
  std::string host = text, rest;
  if (text.starts_with("[")) {
    auto end = text.find(']');
    if (end == std::string::npos) fail();
    host = text.substr(1, end - 1);
    rest = text.substr(end + 1);
  } else if (std::count(text.begin(), text.end(), ':') == 1) {
    host = text.substr(0, text.find(':'));
    rest = text.substr(text.find(':'));
  }
  if (host.empty() || (!rest.empty() && (rest[0] != ':' || rest.size() == 1))) fail();
  return {host, rest.empty() ? "" : rest.substr(1)};
}

// What is handed on as it was typed.
Options plain_options(const Settings& given) {
  Options options;
  options.rdzv_endpoint = given.rdzv_endpoint.text;
  options.master_addr = given.master_addr.text;
  options.run_id = given.rdzv_id.text;
  options.rdzv_conf = given.rdzv_conf.text;
  options.rdzv_backend = given.rdzv_backend.text;
  options.local_addr = given.local_addr.text;
  options.iface = given.iface.text;
  options.role = given.role.text;
  options.mpi = given.mpi;
  options.pid_namespace = given.pid_namespace;
  options.log_dir = given.log_dir.text;
  options.redirects = given.redirects.text;
  options.tee = given.tee.text;
  options.local_ranks_filter = given.local_ranks_filter.text;
  options.prefix_template = given.log_line_prefix_template.text;
  options.report = given.report.text;
  options.bind_to = given.bind_to.text;
  options.workdir = given.workdir.text;
  options.accelerator = given.accelerator.text;
  options.strategy = given.strategy.text;
  options.devices = given.devices.text;
  options.precision = given.precision.text;
  options.is_module = given.module;
  options.no_python = given.no_python;
  options.virtual_local_rank = given.virtual_local_rank;
  return options;
}

void choose_nodes(const Settings& given, Options& options) {
  const auto& nodes = given.nnodes.text;
  auto colon = nodes.find(':');
  options.min_nodes = integer(nodes.substr(0, colon), "--nnodes", 1, 65536);
  options.max_nodes = colon == std::string::npos
                          ? options.min_nodes
                          : integer(nodes.substr(colon + 1), "--nnodes", options.min_nodes, 65536);
  options.node_rank = integer(given.node_rank.text, "--node-rank", 0, 65535);
  auto master_port = given.master_port.text;
  if (!options.master_addr.empty()) {
    auto [host, port_text] = split_endpoint(options.master_addr, "--master-addr");
    if (master_port.empty()) master_port = port_text;
    options.master_addr = host;
  }
  if (!master_port.empty()) options.master_port = integer(master_port, "--master-port", 0, 65535);
  if (given.standalone) {
    options.min_nodes = options.max_nodes = 1;
    options.node_rank = options.master_port = 0;
    options.master_addr.clear();
    options.rdzv_endpoint.clear();
  }
  rendezvous::parse_timing(options.rdzv_conf);
  auto& endpoint = options.rdzv_endpoint;
  if (!endpoint.empty()) {
    auto [host, port_text] = split_endpoint(endpoint, "--rdzv-endpoint");
    options.endpoint_hosts = {host};
    int port = kRendezvousPort;
    if (!port_text.empty()) port = integer(port_text, "--rdzv-endpoint " + endpoint, 0, 65535);
    options.endpoint_ports = {port};
    options.endpoint_port_given = !port_text.empty();
    if (port == 0 && options.max_nodes > 1)
      throw ConfigError("--rdzv-endpoint " + endpoint + ": all nodes must know the port; give one from 1 to 65535");
  }
  if (options.node_rank >= options.max_nodes)
    throw ConfigError("--node-rank " + given.node_rank.text + ": there are " + nodes + " nodes, so the highest is " +
                      std::to_string(options.max_nodes - 1));
}

void choose_workers(const Settings& given, bool nproc_given, Options& options) {
  options.nproc = given.nproc_per_node.text;
  for (auto& letter : options.nproc) letter = static_cast<char>(tolower(letter));
  if (!nproc_given && !options.devices.empty()) {
    // `--devices 2` alone means two workers, and `--devices 0,3` the two of them.
    bool is_number = options.devices.find_first_not_of("0123456789") == std::string::npos;
    // A comma makes it a list of indices: "0," is one device.
    auto commas = std::count(options.devices.begin(), options.devices.end(), ',');
    auto listed = commas + (options.devices.ends_with(",") ? 0 : 1);
    options.nproc = is_number ? options.devices : commas ? std::to_string(listed) : "auto";
  }
  if (options.nproc != "auto" && options.nproc != "cpu" && options.nproc != "gpu")
    integer(options.nproc, "--nproc-per-node", 1, 4096);
  if (!given.numa_binding.text.empty()) {
    if (given.numa_binding.text != "node" && given.numa_binding.text != "socket")
      throw ConfigError("--numa-binding " + given.numa_binding.text +
                        ": node and socket can be had; see also --bind-to");
    options.bind_to = given.numa_binding.text == "node" ? "numa" : "socket";
  }
  const std::vector<std::string> places{"core", "socket", "numa", "none"};
  if (std::find(places.begin(), places.end(), options.bind_to) == places.end())
    throw ConfigError("--bind-to " + options.bind_to + did_you_mean(options.bind_to, places));
  for (const auto& [name, value] : given.env) options.variables.emplace_back(name, value.text);
}

void choose_ending(const Settings& given, const EnvReader& env, Options& options) {
  options.max_restarts = integer(given.max_restarts.text, "--max-restarts", 0, 1000000);
  if (given.grace.text.empty())
    options.grace_seconds =
        seconds(env.get_or("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "30"), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT");
  else
    options.grace_seconds = seconds(given.grace.text, "--grace");
  options.stop_on = parse_signals(given.stop_on.text.empty() ? "TERM,INT,HUP,QUIT" : given.stop_on.text, "--stop-on");
  for (int number : parse_signals(given.forward.text.empty() ? "USR1,USR2" : given.forward.text, "--forward")) {
    bool stops = std::find(options.stop_on.begin(), options.stop_on.end(), number) != options.stop_on.end();
    if (stops && !given.forward.text.empty() && !given.stop_on.text.empty())
      throw ConfigError(signal_name(number) + " is in --forward and in --stop-on; keep it in one of them");
    if (stops && !given.forward.text.empty()) std::erase(options.stop_on, number);
    if (!stops || !given.forward.text.empty()) options.forward.push_back(number);
  }
  options.require_all_seconds = seconds(given.require_all.text, "--require-all");
  options.heartbeat_timeout = seconds(given.heartbeat_timeout.text, "--heartbeat-timeout");
  options.heartbeat_warmup = seconds(given.heartbeat_warmup.text, "--heartbeat-warmup");
  options.progress_timeout = seconds(given.progress_timeout.text, "--progress-timeout");
}

void check_output(const Options& options) {
  streams_of(options.redirects, 0, "--redirects");
  streams_of(options.tee, 0, "--tee");
  parse_ranks(options.local_ranks_filter, "--local-ranks-filter");
}

void check_torchrun(const Settings& given) {
  const auto& backend = given.rdzv_backend.text;
  if (!backend.empty() && backend != "static" && backend != "c10d")
    throw ConfigError("--rdzv-backend " + backend + ": static and c10d are known; etcd is not offered");
  if (!given.event_log_handler.text.empty() && given.event_log_handler.text != "null")
    throw ConfigError("--event-log-handler " + given.event_log_handler.text + ": only null; use --report FILE instead");
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

Word Word::from_tree(const Tree& tree) {
  if (tree.is_string()) return Word(tree.as_string());
  if (tree.is_null()) return {};
  if (tree.is_list() || tree.is_map()) throw ConfigError("expected a word or a number, not a list or a map");
  if (tree.is_bool()) return Word(tree.as_bool() ? "true" : "false");
  return Word(tree.is_int() ? std::to_string(tree.as_int()) : detail::float_text(tree.as_double()));
}

Tree Word::to_tree() const {
  auto number = detail::resolve_plain(text);
  return number.is_number() && from_tree(number).text == text ? number : Tree(text);
}

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
  std::vector<std::string> reversed(words.rbegin(), words.rend());
  try {
    line.app().parse(reversed);
  } catch (const CLI::ArgumentMismatch& error) {
    std::string flag = error.what();
    flag = flag.substr(0, flag.find(": "));
    throw ConfigError(flag + " needs a value behind it, as in " + flag +
                      " VALUE. `fabric run --help` says which there are");
  } catch (const CLI::ParseError& error) {
    throw ConfigError(std::string(error.what()) + ". `fabric run --help` lists all flags");
  }
  if (line.asks_for_help()) return {{}, Information{line.app().help()}};
  if (line.asks_for_version()) return {{}, Information{std::string("fabric ") + FABRIC_VERSION + "\n"}};
  auto rest = line.app().remaining();
  if (!rest.empty() && rest[0] == "--")
    rest.erase(rest.begin());
  else if (!rest.empty() && rest[0].size() > 1 && rest[0][0] == '-')
    fail_unknown(rest[0]);
  detail::Resolver resolver(detail::ops_of<Settings>());
  line.resolve(resolver, env);
  if (line.asks_for_settings()) return {{}, Information{resolver.print()}};
  if (rest.empty()) throw ConfigError("no program was given: fabric run [flags] PROGRAM [its arguments]");
  auto given = from_tree<Settings>(resolver.values());
  auto was_given = [&](const std::string& field) { return resolver.origins().contains(field); };
  auto options = plain_options(given);
  choose_nodes(given, options);
  options.nproc_given = was_given("nproc_per_node") || !options.devices.empty();
  options.nodes_given = given.standalone || was_given("nnodes");
  options.node_rank_given = was_given("node_rank") && !given.standalone;
  choose_workers(given, was_given("nproc_per_node"), options);
  choose_ending(given, env, options);
  check_output(options);
  check_torchrun(given);
  choose_hosts(given, resolver.values(), was_given, options);
  options.command = rest;
  return {options, std::nullopt};
}

}  // namespace fabric::run

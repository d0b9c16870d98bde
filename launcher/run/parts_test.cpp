// Parts of `fabric run` that need no processes.
#include <signal.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "launcher/run/job.h"
#include "launcher/run/machine.h"
#include "launcher/run/options.h"
#include "launcher/run/watch/error_file.h"
#include "launcher/run/watch/heartbeats.h"
#include "launcher/run/workers/worker_environment.h"
#include "tests/support/catch.h"

using namespace fabric::run;
using fabric::ConfigError;
using fabric::MapEnv;

namespace {

Options parse(std::vector<std::string> words) {
  words.push_back("program");
  return parse_options(words, MapEnv()).options;
}

Heartbeats::Clock::time_point at(double seconds) {
  return Heartbeats::Clock::time_point(std::chrono::nanoseconds(static_cast<long long>(seconds * 1e9)));
}

}  // namespace

TEST_CASE("torchrun's command lines are understood", "[options]") {
  auto options = parse({"--nnodes=2", "--nproc_per_node", "4", "--node-rank=1", "--rdzv-endpoint=[::1]:29400",
                        "--rdzv_backend=c10d", "--rdzv-id", "7", "--max-restarts=3", "--monitor-interval=1", "-t", "3",
                        "--start-method=spawn", "--signals-to-handle=SIGTERM,usr1", "--shutdown-timeout=2.5"});
  CHECK(options.nproc == "4");
  CHECK(options.max_nodes == 2);
  CHECK(options.node_rank == 1);
  CHECK(options.node_rank_given);
  CHECK(options.endpoint_hosts == std::vector<std::string>{"::1"});
  CHECK(options.endpoint_ports == std::vector<int>{29400});
  CHECK(options.run_id == "7");
  CHECK(options.max_restarts == 3);
  CHECK(options.tee == "3");
  CHECK(options.grace_seconds == 2.5);
  CHECK(options.stop_on == std::vector<int>{SIGTERM, SIGUSR1});
  CHECK(options.forward == std::vector<int>{SIGUSR2});
  CHECK(parse({"--rdzv-endpoint", "host"}).endpoint_ports == std::vector<int>{29400});
  CHECK(plan_job(parse({"--rdzv-endpoint", "localhost"}), MapEnv()).job.master_port != 29400);
  CHECK(parse({"--standalone", "--master-port", "5"}).master_port == 0);
}

TEST_CASE("Lightning's flags, lists of devices and IPv6 endpoints are understood", "[options]") {
  auto lightning = parse({"--num-nodes", "2", "--node_rank=1", "--main-address=host0", "--main_port", "29401"});
  CHECK(lightning.max_nodes == 2);
  CHECK(lightning.nodes_given);
  CHECK(lightning.master_addr == "host0");
  CHECK(lightning.master_port == 29401);
  for (auto [devices, count] : {std::pair("0,", "1"), {"3,", "1"}, {"0,3", "2"}, {"0,3,", "2"}, {"2", "2"}})
    CHECK(parse({"--devices", devices}).nproc == count);
  struct Case {
    const char *text, *host;
    int port;
  };
  for (const auto& [text, host, port] : {Case{"fd00::1", "fd00::1", 29400},
                                         {"::1", "::1", 29400},
                                         {"[fd00::1]", "fd00::1", 29400},
                                         {"[fe80::1%eth0]:5", "fe80::1%eth0", 5},
                                         {"h:5", "h", 5}}) {
    INFO(text);
    auto options = parse({"--rdzv-endpoint", text});
    CHECK(options.endpoint_hosts == std::vector<std::string>{host});
    CHECK(options.endpoint_ports == std::vector<int>{port});
  }
  for (const char* text : {"[fd00::1", "[fd00::1]5", "h:", ":5", "[]:5"}) {
    INFO(text);
    CHECK_THROWS_AS(parse({"--rdzv-endpoint", text}), ConfigError);
  }
  CHECK(parse({"--nnodes", "2", "--master-addr", "[fd00::1]:7"}).master_addr == "fd00::1");
  CHECK(parse({"--nnodes", "2", "--master-addr", "[fd00::1]:7"}).master_port == 7);
}

TEST_CASE("a flag without its value is told in plain words", "[options]") {
  try {
    parse_options({"--nnodes"}, MapEnv());
    FAIL("no error");
  } catch (const ConfigError& error) {
    CHECK(std::string(error.what()).starts_with("--nnodes needs a value behind it"));
  }
}

TEST_CASE("what follows the program is its own", "[options]") {
  auto options = parse_options({"-n", "2", "./train", "--lr", "1", "--", "-n", "5"}, MapEnv()).options;
  CHECK(options.nproc == "2");
  CHECK(options.command == std::vector<std::string>{"./train", "--lr", "1", "--", "-n", "5"});
  CHECK(parse_options({"--", "-x"}, MapEnv()).options.command == std::vector<std::string>{"-x"});
}

TEST_CASE("settings that cannot be are errors", "[options]") {
  const std::vector<std::vector<std::string>> wrong = {{"-n", "0"},
                                                       {"-n", "2x"},
                                                       {"--nnodes", "3:2"},
                                                       {"--node-rank", "1"},
                                                       {"--master-port", "70000"},
                                                       {"--stop-on", "KILL"},
                                                       {"--forward", "TREM"},
                                                       {"--forward", "TERM", "--stop-on", "TERM"},
                                                       {"--grace", "-1"},
                                                       {"--bind-to", "cores"},
                                                       {"--env", "=x"},
                                                       {"--tee", "4"},
                                                       {"--redirects", "0:1,x:2"},
                                                       {"--local-ranks-filter", "a"},
                                                       {"--rdzv-backend", "etcd"},
                                                       {"--nnodes", "2:"}};
  for (const auto& words : wrong) {
    INFO(words[0] << " " << words[1]);
    CHECK_THROWS_AS(parse(words), ConfigError);
  }
}

TEST_CASE("a file, then variables, then flags", "[options]") {
  char folder[] = "/tmp/fabric_settings_XXXXXX";
  REQUIRE(mkdtemp(folder));
  const std::string file = std::string(folder) + "/run.yaml";
  std::ofstream(file) << "nproc_per_node: 3\nnnodes: 1:2\nmax_restarts: 7\nmpi: true\ngrace: 1.5\n"
                         "devices: 0,1\nenv: {A: 1, B: two}\n";
  MapEnv env({{"PET_MAX_RESTARTS", "5"}, {"PET_ROLE", "trainer"}, {"PET_MPI", "0"}, {"PET_TEE", ""}});
  auto options = parse_options({"--config", file, "--role", "mine", "--env", "B=2", "--env=C=", "true"}, env).options;
  CHECK(options.nproc == "3");
  CHECK(options.max_nodes == 2);
  CHECK(options.nodes_given);
  CHECK(options.max_restarts == 5);
  CHECK_FALSE(options.mpi);
  CHECK(options.role == "mine");
  CHECK(options.grace_seconds == 1.5);
  CHECK(options.tee == "0");
  using Variables = std::vector<std::pair<std::string, std::string>>;
  CHECK(options.variables == Variables{{"A", "1"}, {"B", "2"}, {"C", ""}});

  auto printed = parse_options({"--config", file, "-n", "2", "--print-config"}, env).information->text;
  auto line_of = [&](const std::string& key) {
    auto begin = printed.find("\n" + key + ":");
    return begin == printed.npos ? "" : printed.substr(begin + 1, printed.find('\n', begin + 1) - begin - 1);
  };
  CHECK(printed.starts_with("nproc_per_node: 2 "));
  CHECK(printed.find("# --nproc-per-node\n") != printed.npos);
  CHECK_THAT(line_of("nnodes"), Catch::EndsWith("# " + file + ":2"));
  CHECK_THAT(line_of("max_restarts"), Catch::StartsWith("max_restarts: 5 ") && Catch::EndsWith("# PET_MAX_RESTARTS"));
  CHECK_THAT(line_of("role"), Catch::EndsWith("# PET_ROLE"));
  CHECK_THAT(line_of("tee"), Catch::EndsWith("# default"));
  // What is printed can be given again.
  auto values_of = [](const std::string& text) {
    std::string values;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) values += line.substr(0, line.rfind(" # ")) + "\n";
    return values;
  };
  std::ofstream(file) << printed;
  CHECK(values_of(parse_options({"--config", file, "--print-config"}, MapEnv()).information->text) ==
        values_of(printed));

  auto error_of = [&](const std::string& text) -> std::string {
    std::ofstream(file) << text;
    try {
      parse_options({"--config", file, "true"}, MapEnv());
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  };
  CHECK_THAT(error_of("max_restart: 1\n"), Catch::Contains(":1") && Catch::Contains("max_restarts"));
  CHECK_THAT(error_of("role: [a]\n"), Catch::Contains(":1") && Catch::Contains("role"));
  CHECK_THROWS_AS(parse_options({"true"}, MapEnv(std::map<std::string, std::string>{{"PET_MPI", "maybe"}})),
                  ConfigError);
  std::filesystem::remove_all(folder);
}

TEST_CASE("variables of torchrun's longer names are read", "[options]") {
  auto options = [](const std::string& name, const std::string& value) {
    return parse_options({"true"}, MapEnv(std::map<std::string, std::string>{{name, value}})).options;
  };
  CHECK(options("PET_SHUTDOWN_TIMEOUT", "7").grace_seconds == 7);
  CHECK(options("PET_GRACE", "8").grace_seconds == 8);
  CHECK(options("PET_SIGNALS_TO_HANDLE", "SIGTERM").stop_on == std::vector<int>{SIGTERM});
}

TEST_CASE("choices of streams", "[options]") {
  CHECK(streams_of("3", 17, "--tee") == 3);
  CHECK(streams_of("0:1,117:3", 117, "--tee") == 3);
  CHECK(streams_of("0:1,117:3", 5, "--tee") == 0);
}

TEST_CASE("heartbeats: nothing before the first, then silence, sections and steps", "[heartbeats]") {
  Heartbeats beats({.timeout = 10, .warmup = 100, .progress = 50});
  CHECK_FALSE(beats.deadline());
  beats.feed("be", at(0));
  CHECK_FALSE(beats.deadline());
  beats.feed("at\n", at(0));
  CHECK_FALSE(beats.hang(at(99)));
  CHECK(beats.hang(at(101)));
  beats.feed("step 3\n", at(101));
  CHECK_FALSE(beats.hang(at(110)));
  CHECK(beats.hang(at(112))->find("no heartbeat for 11.0 s (limit 10 s)") != std::string::npos);
  beats.feed("section io 40\nstep 2\n", at(112));
  CHECK(beats.step() == 3);
  CHECK_FALSE(beats.hang(at(150)));
  CHECK(beats.hang(at(151.5))->find("stayed at step 3") != std::string::npos);
  CHECK(beats.hang(at(153))->find("did not leave section 'io' for 41.0 s (limit 40 s)") != std::string::npos);
  beats.feed("end\ntimeout 1\nstep 4\n", at(153));
  CHECK(beats.hang(at(154.5)));
  beats.feed(std::string(100000, 'x') + "\n\x01\n\nsection a\x1b[2J 1e999\nstep 99999999999999999999\nstep\n", at(155));
  CHECK(beats.section() == "a?[2J");
  CHECK_FALSE(beats.forbids_retry());
  beats.feed("noretry disk is gone\n", at(155));
  CHECK(beats.why_no_retry() == "disk is gone");
}

TEST_CASE("heartbeats: sections are nested, limited and forgotten", "[heartbeats]") {
  Heartbeats beats({.timeout = 10, .warmup = 100, .progress = 0});
  beats.feed("section load 30\n", at(0));
  // Its own limit counts from the entry, whatever is heard meanwhile, and the general one rests.
  beats.feed("beat\nbeat\nsection inner\n", at(20));
  CHECK_FALSE(beats.hang(at(29)));
  CHECK(*beats.hang(at(31)) == "did not leave section 'load' for 31.0 s (limit 30 s), in section 'inner'");
  beats.feed("end\n", at(25));
  CHECK(beats.section() == "load");
  beats.feed("section a\nsection b 1\nend a\n", at(26));
  CHECK(beats.section() == "load");
  beats.feed("end nothing\nend load\nend\n", at(27));
  CHECK(beats.section().empty());
  CHECK_FALSE(beats.hang(at(36)));
  CHECK(*beats.hang(at(38)) == "gave no heartbeat for 11.0 s (limit 10 s)");
  beats.feed("section c 1\nreset\n", at(40));
  CHECK_FALSE(beats.hang(at(49)));
  for (int i = 0; i < 100000; ++i) beats.feed("section d\n", at(50));
  beats.feed("timeout 0\n", at(51));
  CHECK_FALSE(beats.deadline());
}

TEST_CASE("heartbeats: sections before the first step leave its time to warm up", "[heartbeats]") {
  Heartbeats beats({.timeout = 10, .warmup = 100, .progress = 0});
  beats.feed("section a\nend a\nsection b\nend b\n", at(0));
  CHECK_FALSE(beats.hang(at(99)));
  beats.feed("step 0\n", at(99));
  CHECK_FALSE(beats.hang(at(198)));
  beats.feed("step 1\n", at(198));
  CHECK(beats.hang(at(209)));
}

TEST_CASE("error files of all kinds", "[error file]") {
  auto full = parse_error_file(R"({"message":{"message":"E: x","extraInfo":{"py_callstack":"s","timestamp":"1"}}})");
  CHECK(full.message == "E: x");
  CHECK(full.backtrace == "s");
  CHECK(parse_error_file(R"({"message":"plain","timestamp":12})").message == "plain");
  for (const char* text :
       {"", "{", "[]", "null", "3", R"({"message":7})", R"({"message":{"extraInfo":[]}})", "\xff\xfe"}) {
    INFO(text);
    CHECK_FALSE(parse_error_file(text).problem.empty());
  }
  auto big = parse_error_file("{\"message\":\"" + std::string(3999, 'a') + "\xc3\xbc\xc3\xbc\"}");
  CHECK(big.message.size() < 4010);
}

TEST_CASE("processors are dealt out in whole groups", "[machine]") {
  std::vector<std::vector<int>> cores{{0, 4}, {1, 5}, {2, 6}, {3, 7}};
  CHECK(deal_out(cores, 0, 2) == std::vector<int>{0, 4, 1, 5});
  CHECK(deal_out(cores, 2, 3) == std::vector<int>{2, 6, 3, 7});
  CHECK(deal_out(cores, 7, 8) == std::vector<int>{3, 7});
}

TEST_CASE("an outer launcher's variables go, the user's stay", "[environment]") {
  auto kept = without_outer_job({"RANK=3", "ROLE_RANK=1", "GROUP_NAME=mine", "TORCHELASTIC_RUN_ID=x", "HOME=/h",
                                 "FABRIC_STRATEGY=ddp", "LT_CLI_USED=1", "LT_DEVICES=4", "A=b=c"});
  CHECK(kept == Variables{{"GROUP_NAME", "mine"}, {"HOME", "/h"}, {"FABRIC_STRATEGY", "ddp"}, {"A", "b=c"}});
}

TEST_CASE("one launcher on each node of a SLURM step needs no flags", "[job]") {
  std::map<std::string, std::string> step{{"SLURM_STEP_ID", "0"},       {"SLURM_NODEID", "1"},
                                          {"SLURM_NTASKS", "2"},        {"SLURM_STEP_NUM_NODES", "2"},
                                          {"SLURM_JOB_ID", "123456"},   {"SLURM_STEP_NODELIST", "gpu-[08-09]"},
                                          {"SLURMD_NODENAME", "gpu-09"}};
  auto planned = plan_job(complete_from_slurm(parse({"-n", "4"}), MapEnv(step)), MapEnv(step));
  CHECK(planned.job.host == "gpu-09");
  CHECK(planned.job.id == "123456.0");
  REQUIRE(planned.rendezvous);
  const auto& setup = *planned.rendezvous;
  CHECK(setup.settings.min_nodes == 2);
  CHECK(setup.settings.max_nodes == 2);
  CHECK(setup.own.wanted_rank == 1);
  CHECK(setup.own.local_size == 4);
  CHECK(setup.hosts == false);
  CHECK(setup.endpoint_hosts.front() == "gpu-08");
  CHECK(setup.ports.front() == 18456);
  CHECK(setup.settings.run_id == "123456.0");
  CHECK_FALSE(setup.has_secret);
  CHECK(setup.settings.expected == std::vector<std::string>{"gpu-08", "gpu-09"});
  auto elastic = complete_from_slurm(parse({"--nnodes", "1:2"}), MapEnv(step));
  CHECK(elastic.min_nodes == 1);
  CHECK(elastic.endpoint_hosts.front() == "gpu-08");
  CHECK(complete_from_slurm(parse({"--standalone"}), MapEnv(step)).max_nodes == 1);
  step["SLURM_NTASKS"] = "8";
  CHECK_THROWS_AS(complete_from_slurm(parse({"-n", "4"}), MapEnv(step)), ConfigError);
  step.erase("SLURM_STEP_ID");
  CHECK(complete_from_slurm(parse({}), MapEnv(step)).max_nodes == 1);
}

TEST_CASE("jobs on several nodes must say where they meet", "[job]") {
  CHECK_THROWS_AS(plan_job(parse({"--nnodes", "2"}), MapEnv()), ConfigError);
  CHECK_THROWS_AS(plan_job(parse({"--nnodes", "1:2"}), MapEnv()), ConfigError);
  CHECK_THROWS_AS(parse({"--nnodes", "1:2", "--rdzv-endpoint", "h:0"}), ConfigError);
  auto setup = [](std::vector<std::string> words) { return *plan_job(parse(std::move(words)), MapEnv()).rendezvous; };
  auto node = setup({"--nnodes", "2", "--node-rank", "1", "--rdzv-endpoint", "h:5", "--rdzv-id", "secret"});
  CHECK(node.own.wanted_rank == 1);
  CHECK(node.hosts == false);
  CHECK(node.ports == std::vector<int>{5});
  CHECK(node.settings.run_id == "secret");
  CHECK_FALSE(node.has_secret);
  // The static way: the launchers meet at the master's address, and rank 0's store gets a port of its own.
  auto fixed = setup({"--nnodes", "2", "--node-rank", "0", "--master-addr", "h", "--master-port", "7"});
  CHECK(fixed.hosts == true);
  CHECK(fixed.endpoint_hosts == std::vector<std::string>{"h"});
  CHECK(fixed.ports == std::vector<int>{7});
  CHECK(fixed.settings.master_port == 0);
  auto both = setup({"--nnodes", "2", "--rdzv-endpoint", "h:5", "--master-port", "7"});
  CHECK(both.settings.master_port == 7);
  CHECK_FALSE(both.hosts);
  CHECK_FALSE(setup({"--nnodes", "1:2", "--node-rank", "0", "--rdzv-endpoint", "h:5"}).hosts);
  CHECK(setup({"--nnodes", "1:2", "--rdzv-endpoint", "h:5", "--rdzv-conf", "is_host=1"}).hosts == true);
}

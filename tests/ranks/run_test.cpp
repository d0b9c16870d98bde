// `fabric run` with real processes: who runs, with which variables and arguments, which programs and flags are refused,
// and what the limits of the machine allow.
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <set>

#include "tests/ranks/run_support.h"
#include "tests/support/catch.h"

using run_support::Folder;
using run_support::Job;
using run_support::require_clean;
using run_support::Result;
using run_support::run;
using run_support::shell;

namespace {

std::string value(const Result& result, const std::string& rank, const std::string& name) {
  for (const auto& line : result.lines(rank + " " + name + "=")) return line.substr(rank.size() + name.size() + 2);
  return "(missing)";
}

}  // namespace

TEST_CASE("one worker that ends well", "[run]") {
  auto result = run({"run", "/bin/true"});
  require_clean(result);
  CHECK(result.code == 0);
  CHECK(result.out.empty());
  CHECK(result.error.empty());
}

TEST_CASE("workers get torchrun's variables, and nothing of an outer launcher", "[run]") {
  auto result = run(shell(4, "env | sed \"s/^/$RANK /\"",
                          {"--max-restarts", "3", "--role", "trainer", "--env", "A=b=c", "--accelerator", "cpu"}),
                    {{"GROUP_RANK", "9"},
                     {"NODE_RANK", "9"},
                     {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                     {"MASTER_PORT", "1"},
                     {"FABRIC_CLI_USED", "1"},
                     {"FABRIC_STRATEGY", "fsdp"},
                     {"TORCHELASTIC_RESTART_COUNT", "7"},
                     {"PET_RDZV_ID", "a job"}});
  require_clean(result);
  REQUIRE(result.code == 0);
  cpu_set_t cpus;
  sched_getaffinity(0, sizeof cpus, &cpus);
  std::set<std::string> ports;
  for (std::string rank : {"0", "1", "2", "3"}) {
    const run_support::Variables expected{{"RANK", rank},
                                          {"LOCAL_RANK", rank},
                                          {"ROLE_RANK", rank},
                                          {"WORLD_SIZE", "4"},
                                          {"LOCAL_WORLD_SIZE", "4"},
                                          {"ROLE_WORLD_SIZE", "4"},
                                          {"GROUP_RANK", "0"},
                                          {"GROUP_WORLD_SIZE", "1"},
                                          {"ROLE_NAME", "trainer"},
                                          {"MASTER_ADDR", "127.0.0.1"},
                                          {"TORCHELASTIC_RESTART_COUNT", "0"},
                                          {"TORCHELASTIC_MAX_RESTARTS", "3"},
                                          {"TORCHELASTIC_RUN_ID", "a job"},
                                          {"TORCHELASTIC_USE_AGENT_STORE", "False"},
                                          {"A", "b=c"},
                                          {"TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGHUP,SIGQUIT"},
                                          {"TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"},
                                          {"OMP_NUM_THREADS", std::to_string(std::max(1, CPU_COUNT(&cpus) / 4))},
                                          {"FABRIC_ACCELERATOR", "cpu"},
                                          {"FABRIC_CLI_USED", "1"},
                                          {"FABRIC_STRATEGY", "(missing)"},
                                          {"NODE_RANK", "(missing)"},
                                          {"PET_RDZV_ID", "(missing)"}};
    for (const auto& [name, text] : expected) {
      INFO(name);
      CHECK(value(result, rank, name) == text);
    }
    ports.insert(value(result, rank, "MASTER_PORT"));
    CHECK(value(result, rank, "TORCHELASTIC_ERROR_FILE").ends_with("/attempt_0/" + rank + "/error.json"));
  }
  CHECK(ports.size() == 1);
  CHECK_FALSE(ports.count("1"));
  CHECK(value(run(shell(2, "env | sed \"s/^/$RANK /\""), {{"OMP_NUM_THREADS", "7"}}), "1", "OMP_NUM_THREADS") == "7");
}

TEST_CASE("arguments reach the worker byte by byte; only ${local_rank} is replaced", "[run]") {
  auto result = run({"run", "--nproc_per_node=2", "--", "printf", "<%s>", "a b", "'\"", "ü\\n", "--", "", "-n",
                     "x${local_rank}y$HOME${rank}"});
  require_clean(result);
  CHECK(result.lines() == std::vector<std::string>{"<a b><'\"><ü\\n><--><><-n><x0y$HOME${rank}>",
                                                   "<a b><'\"><ü\\n><--><><-n><x1y$HOME${rank}>"});
}

TEST_CASE("programs that cannot run", "[run]") {
  Folder folder;
  auto missing = run({"run", "-n", "2", "./not_there"});
  CHECK(missing.code == 127);
  CHECK(missing.error == "fabric: there is no program './not_there'\n");
  CHECK(run({"run", "/etc/passwd"}).code == 126);
  CHECK(run({"run", folder.path()}).said("it is a folder"));
  auto write = [&](const std::string& name, const std::string& text) {
    int fd = open((folder / name).c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0755);
    CHECK(::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
    close(fd);
    return folder / name;
  };
  auto foreign = run({"run", "-n", "2",
                      write("foreign", std::string("\x7f"
                                                   "ELF\1\1\1",
                                                   7) +
                                           std::string(60, '\0'))});
  require_clean(foreign);
  CHECK(foreign.code == 126);
  CHECK(foreign.said("another kind of machine"));
  auto script = run({"run", write("script", "#!/no/such/shell\n")});
  CHECK(script.code == 126);
  CHECK(script.said("its interpreter '/no/such/shell' is missing"));
  auto folderless = run({"run", "--workdir", "/no/such", "true"});
  CHECK(folderless.code == 125);
  CHECK(folderless.said("--workdir /no/such: No such file"));
}

TEST_CASE("flags: unknown ones name the nearest, variables of torchrun count less than flags", "[run]") {
  auto unknown = run({"run", "--nprocpernode", "2", "true"});
  CHECK(unknown.code == 2);
  CHECK(unknown.said("did you mean --nproc-per-node?"));
  CHECK(run({"run", "--max-restarts", "x", "true"}).said("--max-restarts x: give a whole number"));
  CHECK(run({"run", "-n", "2"}).said("no program was given"));
  CHECK(run({"run", "sh", "-c", "echo $WORLD_SIZE"}, {{"PET_NPROC_PER_NODE", "3"}}).lines().size() == 3);
  CHECK(run(shell(2, "echo $WORLD_SIZE"), {{"PET_NPROC_PER_NODE", "3"}}).lines().size() == 2);
  CHECK(run({"run", "--devices", "2", "sh", "-c", "echo $FABRIC_DEVICES"}).lines().size() == 2);
  CHECK(run({"run", "--help"}).out.find("--nproc-per-node") != std::string::npos);
  CHECK(run({"rum"}).said("did you mean 'run'?"));
}

TEST_CASE("a command whose program is missing says which", "[run]") {
  Folder folder;
  auto alone = folder / "fabric";
  std::filesystem::copy_file(run_support::program(), alone);
  auto result = run({"run", alone, "convert", "a", "b"});
  require_clean(result);
  CHECK(result.code == 127);
  CHECK(result.said("`fabric convert` is the program fabric-convert, which is not in /"));
  CHECK(run({"run", alone, "verify", "a"}).said("`fabric verify` is the program fabric-checkpoint, which is not in /"));
}

TEST_CASE("free ports do not collide; a taken one that was asked for names its owner", "[run]") {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  socklen_t size = sizeof address;
  REQUIRE(bind(fd, reinterpret_cast<sockaddr*>(&address), size) == 0);
  REQUIRE(listen(fd, 1) == 0);
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  auto port = std::to_string(ntohs(address.sin_port));
  auto taken = run({"run", "--master-port", port, "true"});
  close(fd);
  CHECK(taken.code == 125);
  CHECK(taken.said("port " + port + " is taken by process " + std::to_string(getpid())));
  std::vector<std::unique_ptr<Job>> jobs;
  std::set<std::string> ports;
  for (int i = 0; i < 8; ++i) jobs.push_back(std::make_unique<Job>(shell(1, "echo $MASTER_PORT; sleep 0.5")));
  for (auto& job : jobs) ports.insert(job->finish().lines().at(0));
  CHECK(ports.size() == 8);
}

TEST_CASE("limits of descriptors and processes", "[run]") {
  auto files = run(shell(8, "true"), {}, [] {
    rlimit limit{24, 24};
    setrlimit(RLIMIT_NOFILE, &limit);
  });
  require_clean(files);
  CHECK(files.code == 125);
  CHECK(files.said("raise it with ulimit -n"));
  auto lifted = run(shell(8, "ulimit -n"), {}, [] {
    rlimit limit{24, 4096};
    setrlimit(RLIMIT_NOFILE, &limit);
  });
  CHECK(lifted.lines("24").size() == 8);
}

TEST_CASE("with --mpi mpirun starts the ranks, more of them than cores", "[run][mpi]") {
  if (run({"run", "sh", "-c", "command -v mpirun"}).out.empty()) {
    WARN("no mpirun here");
    return;
  }
  auto result =
      run({"run", "--mpi", "-n", "3", "sh", "-c", "echo $OMPI_COMM_WORLD_SIZE ${RANK-no} ${TORCHELASTIC_RUN_ID-no}"});
  require_clean(result);
  CHECK(result.code == 0);
  CHECK(result.lines("3 no no").size() == 3);
  Job job({"run", "--mpi", "-n", "2", "sh", "-c", "echo ready; sleep 100"});
  REQUIRE(job.wait_for("ready", 2));
  job.signal(SIGKILL);
  require_clean(job.finish());
}

// `fabric run` with real processes. Numbers in the names are those of the list of launcher tests that this project
// keeps: who runs, with which variables, who dies with whom, with which code and what is said about it.
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <set>

#include <fabric/tree_io.h>

#include "tests/ranks/run_support.h"
#include "tests/support/catch.h"

using run_support::Folder;
using run_support::Job;
using run_support::read_file;
using run_support::require_clean;
using run_support::Result;
using run_support::run;
using run_support::shell;

namespace {

// Helpers in sessions of their own, one orphaned at once, one whose parent stays.
const char* kHelpers = "setsid sleep 100 & (setsid sh -c 'sleep 100 & exec sleep 100' &) ; ";

std::string value(const Result& result, const std::string& rank, const std::string& name) {
  for (const auto& line : result.lines(rank + " " + name + "=")) return line.substr(rank.size() + name.size() + 2);
  return "(missing)";
}

}  // namespace

TEST_CASE("1 one worker that ends well", "[run]") {
  auto result = run({"run", "/bin/true"});
  require_clean(result);
  CHECK(result.code == 0);
  CHECK(result.out.empty());
  CHECK(result.error.empty());
}

TEST_CASE("2, 57, 58 workers get torchrun's variables, and nothing of an outer launcher", "[run]") {
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

TEST_CASE("3, 4 arguments reach the worker byte by byte; only ${local_rank} is replaced", "[run]") {
  auto result = run({"run", "--nproc_per_node=2", "--", "printf", "<%s>", "a b", "'\"", "ü\\n", "--", "", "-n",
                     "x${local_rank}y$HOME${rank}"});
  require_clean(result);
  CHECK(result.lines() == std::vector<std::string>{"<a b><'\"><ü\\n><--><><-n><x0y$HOME${rank}>",
                                                   "<a b><'\"><ü\\n><--><><-n><x1y$HOME${rank}>"});
}

TEST_CASE("5, 6, 7 programs that cannot run", "[run]") {
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
  CHECK(run({"convert", "x"}).code == 127);
}

TEST_CASE("8 the first failed worker is the cause, the others were stopped", "[run]") {
  auto result = run(shell(3, "[ $RANK = 1 ] && { echo lost it >&2; exit 7; }; sleep 100"));
  require_clean(result);
  CHECK(result.code == 7);
  CHECK(result.said("rank 1 (local rank 1 on"));
  CHECK(result.said("ended with exit code 7"));
  CHECK(result.said("last lines of its stderr:\n      lost it"));
  CHECK(result.said("other ranks: stopped: 0, 2"));
}

TEST_CASE("9, 10 exit codes and signals are passed on", "[run]") {
  for (int code : {1, 2, 93, 126, 255}) CHECK(run({"run", "sh", "-c", "exit " + std::to_string(code)}).code == code);
  for (auto [name, code] : {std::pair("SEGV", 139), {"KILL", 137}, {"ABRT", 134}}) {
    auto result = run({"run", "-n", "2", "sh", "-c", "[ $RANK = 1 ] && kill -" + std::string(name) + " $$; sleep 100"});
    require_clean(result);
    CHECK(result.code == code);
    CHECK(result.said("(SIG" + std::string(name) + ")"));
  }
  CHECK(run({"run", "sh", "-c", "ulimit -c 0; kill -SEGV $$"}).said("no core was dumped"));
}

TEST_CASE("11 two failures in a row stay in order", "[run]") {
  for (int first : {0, 1}) {
    auto script = "[ $RANK = " + std::to_string(first) + " ] || sleep 0.05; exit $((10 + RANK))";
    CHECK(run(shell(2, script)).code == 10 + first);
  }
}

TEST_CASE("12, 13 error files, good and hostile", "[run]") {
  Folder folder;
  auto with_file = [&](const std::string& text) {
    return run(shell(1, text + " > $TORCHELASTIC_ERROR_FILE; exit 3"),
               {{"TORCHELASTIC_ERROR_FILE", folder / "own.json"}});
  };
  auto good = with_file(
      R"(echo '{"message":{"message":"Error: lost","extraInfo":{"py_callstack":"#0 here","timestamp":"5"}}}')");
  CHECK(good.code == 3);
  CHECK(good.said("error: Error: lost"));
  CHECK(good.said("#0 here"));
  auto copy = fabric::read_json(read_file(folder / "own.json"));
  CHECK(copy.at("message").at("errorCode").as_int() == 3);
  CHECK(with_file(R"(echo '{"message":"plain","timestamp":5}')").said("error: plain"));
  for (const char* text : {"printf '{\"message\":'", "head -c 1000 /dev/urandom", "head -c 3000000 /dev/zero", "true",
                           "echo '[[[[]]]]'", "yes '[' | head -c 900000 | tr -d '\\n'"}) {
    INFO(text);
    auto result = with_file(text);
    require_clean(result);
    CHECK(result.code == 3);
    CHECK(result.said("is unreadable:"));
  }
}

TEST_CASE("14 rank 0 ends, the others go on, or are named when --require-all is over", "[run]") {
  CHECK(run(shell(2, "[ $RANK = 0 ] || sleep 0.2")).code == 0);
  auto result = run(shell(3, "[ $RANK = 0 ] || sleep 100", {"--require-all", "0.2"}));
  require_clean(result);
  CHECK(result.code == 97);
  CHECK(result.said("these ranks still ran: 1, 2"));
}

TEST_CASE("15 SIGTERM: each worker gets it once", "[run]") {
  Job job(shell(2, "trap 'echo got it' TERM; echo ready; while :; do sleep 0.05; done", {"--grace", "0.3"}));
  REQUIRE(job.wait_for("ready", 2));
  job.signal(SIGTERM);
  auto result = job.finish();
  require_clean(result);
  CHECK(result.code == 143);
  CHECK(result.lines("got it").size() == 2);
}

TEST_CASE("16 --grace holds when a sibling fails, at a signal and before a restart", "[run]") {
  const std::string deaf = "trap '' TERM; [ $RANK = 0 ] || { sleep 0.1; exit 5; }; while :; do sleep 0.05; done";
  auto failed = run(shell(2, deaf, {"--grace", "0.2"}));
  require_clean(failed);
  CHECK(failed.code == 5);
  CHECK(failed.seconds < 5);
  auto restarted = run(shell(2, deaf, {"--shutdown_timeout", "0.2", "--max-restarts", "1"}));
  require_clean(restarted);
  CHECK(restarted.code == 5);
  CHECK(restarted.seconds < 8);
}

TEST_CASE("17 a second Ctrl-C kills", "[run]") {
  Job job(shell(2, "trap '' INT; echo ready; while :; do sleep 0.05; done", {"--grace", "60"}));
  REQUIRE(job.wait_for("ready", 2));
  job.signal(SIGINT);
  usleep(100000);
  job.signal(SIGINT);
  auto result = job.finish();
  require_clean(result);
  CHECK(result.code == 130);
}

TEST_CASE("18, 19, 21 whoever is killed, nothing is left", "[run]") {
  const std::string script = std::string(kHelpers) + "echo ready; wait; sleep 100";
  for (int number : {SIGKILL, SIGTERM, SIGSEGV, SIGALRM}) {
    INFO("signal " << number);
    Job launcher(shell(2, script));
    REQUIRE(launcher.wait_for("ready", 2));
    launcher.signal(number);
    require_clean(launcher.finish());
    CHECK(run({"run", "sh", "-c", "ls $TMPDIR | wc -l"}).lines() == std::vector<std::string>{"1"});
    Job guarded(shell(2, script));
    REQUIRE(guarded.wait_for("ready", 2));
    kill(guarded.guardian(), number);
    auto result = guarded.finish();
    require_clean(result);
    CHECK(result.code == 128 + number);
  }
  auto worker = run(shell(2, std::string(kHelpers) + "[ $RANK = 1 ] && exit 9; sleep 100"));
  require_clean(worker);
  CHECK(worker.code == 9);
  auto well = run(shell(2, kHelpers));
  require_clean(well);
  CHECK(well.code == 0);
}

TEST_CASE("20 launcher and guardian killed at one blow", "[run]") {
  bool has_cgroup = run({"doctor"}).out.find("workers cannot survive") != std::string::npos;
  bool has_namespace = run({"run", "--pid-namespace", "true"}).code == 0;
  std::vector<std::vector<std::string>> ways;
  if (has_cgroup) ways.push_back({});
  if (has_namespace) ways.push_back({"--pid-namespace"});
  if (ways.empty()) WARN("neither a cgroup that may be written nor PID namespaces here");
  for (const auto& flags : ways) {
    Job job(shell(2, std::string(kHelpers) + "echo ready; wait; sleep 100", flags));
    REQUIRE(job.wait_for("ready", 2));
    kill(job.guardian(), SIGSTOP);
    job.signal(SIGSTOP);
    kill(job.guardian(), SIGKILL);
    job.signal(SIGKILL);
    require_clean(job.finish());
  }
}

TEST_CASE("a PID namespace: codes, pids and signals are as without", "[run]") {
  if (run({"run", "--pid-namespace", "true"}).code != 0) {
    WARN("no PID namespaces here");
    return;
  }
  auto result = run(shell(2, "[ $RANK = 1 ] && kill -KILL $$; sleep 100", {"--pid-namespace"}));
  require_clean(result);
  CHECK(result.code == 137);
  Job job(shell(1, "echo pid $$; sleep 100", {"--pid-namespace"}));
  REQUIRE(job.wait_for("pid "));
  job.signal(SIGTERM);
  CHECK(job.finish().code == 143);
}

TEST_CASE("22 a stopped worker does not hold up the end", "[run]") {
  Job job(shell(2, "echo ready $$; [ $RANK = 0 ] && kill -STOP $$; sleep 100", {"--grace", "0.2"}));
  REQUIRE(job.wait_for("ready", 2));
  usleep(50000);
  job.signal(SIGTERM);
  auto result = job.finish();
  require_clean(result);
  CHECK(result.code == 143);
  CHECK(result.seconds < 5);
}

TEST_CASE("23, 24 ignored hang-ups stay ignored, forwarded signals let the run go on", "[run]") {
  Job job(shell(2, "trap 'echo usr' USR1; trap 'exit 0' USR2; echo ready; while :; do sleep 0.05; done"), {},
          [] { signal(SIGHUP, SIG_IGN); });
  REQUIRE(job.wait_for("ready", 2));
  job.signal(SIGHUP);
  job.signal(SIGUSR1);
  REQUIRE(job.wait_for("usr", 2));
  job.signal(SIGUSR2);
  auto result = job.finish();
  require_clean(result);
  CHECK(result.code == 0);
  CHECK(result.lines("usr").size() == 2);
}

TEST_CASE("25 a rank that hangs is named with its section and where it is", "[run]") {
  auto result = run(shell(2,
                          "exec 9>&$FABRIC_HEARTBEAT_FD; echo beat >&9; echo beat >&9; "
                          "[ $RANK = 1 ] && echo 'section all_reduce 0.2' >&9; exec sleep 100"),
                    {{"PATH", "/bin"}});
  require_clean(result);
  CHECK(result.code == 94);
  CHECK(result.said("rank 1 (local rank 1"));
  CHECK(result.said("did not leave section 'all_reduce' for 0."));
  CHECK(result.said("where its threads were:"));
  CHECK(result.said("other ranks: stopped: 0"));
}

TEST_CASE("25 who ends a job while a debugger looks at a rank does not wait for the debugger", "[run]") {
  Folder folder;
  auto begun = folder / "begun";
  run_support::write_script(folder / "eu-stack", "echo > " + begun + "; exec sleep 60");
  const std::string hang = "echo 'section load 0.1' >&$FABRIC_HEARTBEAT_FD; ";
  for (const auto& [script, code] : {std::pair(hang + "exec sleep 100", 143),
                                     std::pair(hang + "while [ ! -e " + begun + " ]; do :; done; exit 3", 94)}) {
    INFO(script);
    std::filesystem::remove(begun);
    Job job(shell(1, script), {{"PATH", folder.path() + ":/usr/bin:/bin"}});
    for (int i = 0; i < 1000 && !std::filesystem::exists(begun); ++i) usleep(10000);
    CHECK(std::filesystem::exists(begun));
    if (code == 143) job.signal(SIGTERM);
    auto result = job.finish();
    require_clean(result);
    CHECK(result.code == code);
    CHECK(result.seconds < 6);
  }
}

TEST_CASE("26, 27 progress and warm-up", "[run]") {
  const std::string say = "exec 9>&$FABRIC_HEARTBEAT_FD; ";
  auto busy = run(
      shell(1, say + "echo 'step 4' >&9; while :; do echo beat >&9; sleep 0.05; done", {"--progress-timeout", "0.3"}));
  require_clean(busy);
  CHECK(busy.code == 94);
  CHECK(busy.said("stayed at step 4"));
  auto slow = run(shell(1, say + "echo beat >&9; sleep 0.6; echo beat >&9; sleep 0.05",
                        {"--heartbeat-timeout", "0.4", "--heartbeat-warmup", "20"}));
  CHECK(slow.code == 0);
}

TEST_CASE("28, 29, 30 restarts: all workers, one count, one budget, and none where the worker forbids it", "[run]") {
  Folder folder;
  auto again = run(shell(2,
                         "echo rank $RANK attempt $TORCHELASTIC_RESTART_COUNT; [ $RANK = 0 ] || "
                         "[ $TORCHELASTIC_RESTART_COUNT = 2 ] || exit 4",
                         {"--max-restarts", "2", "--report", folder / "report.json"}));
  require_clean(again);
  CHECK(again.code == 0);
  CHECK(again.lines("attempt 2").size() == 2);
  CHECK(fabric::read_json(read_file(folder / "report.json")).at("attempts").as_list().size() == 3);
  auto spent = run(shell(2, "exit $((5 + TORCHELASTIC_RESTART_COUNT))", {"--max-restarts", "1"}));
  CHECK(spent.code == 6);
  CHECK(spent.said("attempt 0: rank"));
  CHECK(spent.said("attempt 1: rank"));
  auto forbidden = run(shell(1, "echo attempt; exit 93", {"--max-restarts", "3"}));
  CHECK(forbidden.code == 93);
  CHECK(forbidden.lines("attempt").size() == 1);
  auto asked = run(shell(1, "exec 9>&$FABRIC_HEARTBEAT_FD; echo noretry >&9; sleep 0.1; echo attempt; exit 1",
                         {"--max-restarts", "3"}));
  CHECK(asked.lines("attempt").size() == 1);
}

TEST_CASE("31 three restarts without progress are enough", "[run]") {
  auto result = run(shell(1, "exec 9>&$FABRIC_HEARTBEAT_FD; echo 'step 10' >&9; sleep 0.05; echo attempt; exit 1",
                          {"--max-restarts", "100"}));
  require_clean(result);
  CHECK(result.code == 96);
  CHECK(result.lines("attempt").size() == 4);
  CHECK(result.said("no further than step 10"));
}

TEST_CASE("41, 42 free ports do not collide; a taken one that was asked for names its owner", "[run]") {
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

TEST_CASE("44 a full disk of logs hurts no worker", "[run]") {
  if (geteuid() != 0) {
    WARN("only root can make a small disk");
    return;
  }
  Folder folder;
  REQUIRE(mount("none", folder.path().c_str(), "tmpfs", 0, "size=64k") == 0);
  auto result =
      run(shell(2, "head -c 300000 /dev/zero | tr '\\0' '\\n'; echo done", {"--log-dir", folder.path(), "--tee", "3"}));
  umount2(folder.path().c_str(), MNT_DETACH);
  require_clean(result);
  CHECK(result.code == 0);
  CHECK(result.lines("done").size() == 2);
  CHECK(result.said("No space left on device; the run goes on without it"));
}

TEST_CASE("45, 46 limits of descriptors and processes", "[run]") {
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

TEST_CASE("47 lines are whole and none is lost", "[run]") {
  auto result = run(shell(4,
                          "i=0; line=$(head -c 5000 /dev/zero | tr '\\0' x); while [ $i -lt 50 ]; do "
                          "echo $RANK-$i-$line-; i=$((i+1)); done; printf 'end\\001%s' $RANK"));
  require_clean(result);
  CHECK(result.code == 0);
  auto lines = result.lines("-x");
  REQUIRE(lines.size() == 200);
  for (const auto& line : lines)
    CHECK((line.size() > 5004 && line.back() == '-' && line.find('-', 5) == line.size() - 1));
  CHECK(result.lines("end\001").size() == 4);
}

TEST_CASE("log files lie as torchrun's do, and choices of streams hold", "[run]") {
  Folder folder;
  auto result =
      run(shell(11, "echo out $RANK; echo error $RANK >&2; printf '\\377\\000x'",
                {"--log-dir", folder.path(), "--redirects", "0:1,10:3", "--tee", "1:2", "--rdzv-id", "id",
                 "--local-ranks-filter", "0,1,10", "--log-line-prefix-template", "<${role_name}${local_rank}>"}));
  require_clean(result);
  std::string error = result.error.substr(result.error.find('\n') + 1);
  CHECK(result.out.find("<default1>out 1\n") != std::string::npos);
  CHECK(result.out.find("out 0") == std::string::npos);
  CHECK(result.out.find("out 2") == std::string::npos);
  CHECK((error == "<default0>error 0\n<default1>error 1\n" || error == "<default1>error 1\n<default0>error 0\n"));
  auto found =
      run({"run", "sh", "-c", "cd " + folder.path() + "/id_*/attempt_0 && find . -name '*.log' | sort | tr '\\n' ' '"});
  CHECK(found.lines().at(0) == "./0/stdout.log ./1/stderr.log ./10/stderr.log ./10/stdout.log ");
  auto bytes = run({"run", "sh", "-c", "cat " + folder.path() + "/id_*/attempt_0/10/stdout.log | od -An -tx1"});
  CHECK(bytes.lines().at(0) == " 6f 75 74 20 31 30 0a ff 00 78");
}

TEST_CASE("48, 49 a closed stdout, and much output", "[run]") {
  Folder folder;
  auto closed =
      run(shell(2, "for i in 1 2 3; do echo line; done; sleep 0.1; echo more; echo well > " + folder.path() + "/$RANK"),
          {}, [] {
            int ends[2];
            if (pipe(ends) != 0) _exit(1);
            dup2(ends[1], 1);
            close(ends[0]);
            close(ends[1]);
          });
  require_clean(closed);
  CHECK(closed.code == 0);
  CHECK(read_file(folder / "1") == "well\n");
  // The reader takes nothing for a while: the launcher must not grow.
  Job job(
      shell(
          2,
          "yes 0123456789012345678901234567890123456789012345678901234567890123456789012345678 | head -c 6000000 >&2; "
          "head -c 6000000 /dev/zero"),
      {}, [] {
        int null = open("/dev/null", O_WRONLY);
        dup2(null, 1);
        rlimit limit{200 << 20, 200 << 20};
        if (!run_support::kSanitized) setrlimit(RLIMIT_AS, &limit);
      });
  usleep(300000);
  auto status = read_file("/proc/" + std::to_string(job.pid()) + "/status");
  auto at = status.find("VmHWM:");
  CHECK(std::atoi(status.c_str() + (at == std::string::npos ? 0 : at + 6)) <
        (run_support::kSanitized ? 400000 : 12000));
  auto result = job.finish();
  CHECK(result.code == 0);
  CHECK(std::count(result.error.begin(), result.error.end(), '\n') >= 140000);
}

TEST_CASE("51 --mpi lets mpirun start the ranks, more of them than cores", "[run]") {
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

// `fabric run` at the limits of the machine: many jobs, much output, no memory, no processes, programs that do not
// load.
#include <fcntl.h>
#include <grp.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <sstream>

#include <fabric/base/tree_io.h>

#include "tests/ranks/run_support.h"
#include "tests/support/catch.h"
#include "tests/support/control_group.h"

using control_group::MemoryGroup;
using control_group::write_file;
using run_support::Folder;
using run_support::Job;
using run_support::read_file;
using run_support::require_clean;
using run_support::Result;
using run_support::run;
using run_support::shell;

TEST_CASE("a worker that does nothing costs little time", "[run]") {
  // Of the processors: how long it takes is the machine's matter.
  auto used = [] {
    rusage usage{};
    getrusage(RUSAGE_CHILDREN, &usage);
    auto seconds = [](const timeval& time) { return static_cast<double>(time.tv_sec) + time.tv_usec * 1e-6; };
    return seconds(usage.ru_utime) + seconds(usage.ru_stime);
  };
  double best = 10;
  for (int i = 0; i < 10; ++i) {
    const double before = used();
    run({"run", "/bin/true"});
    best = std::min(best, used() - before);
  }
  CHECK(best < (run_support::kSanitized ? 1.0 : 0.05));
}

TEST_CASE("what the loader says about a missing library is in the report", "[run]") {
  // The same program, asking for a library that is nowhere.
  auto bytes = read_file(FABRIC_RUN_PROGRAM);
  const std::string wanted = "libstdc++.so.6", absent = "libabsent.so.6";
  auto at = bytes.find(wanted);
  if (at == std::string::npos) {
    WARN("the test program does not need " + wanted);
    return;
  }
  bytes.replace(at, wanted.size(), absent);
  Folder folder;
  auto path = folder / "program";
  REQUIRE(write_file(path, bytes));
  REQUIRE(chmod(path.c_str(), 0755) == 0);
  auto result = run({"run", "-n", "2", path, "beat"});
  require_clean(result);
  CHECK(result.code == 127);
  CHECK(result.said("error while loading shared libraries: libabsent.so.6"));
  CHECK(result.said("last lines of its stderr"));
}

TEST_CASE("every exit code is passed on", "[run]") {
  for (int code = 1; code < 256; ++code) {
    INFO(code);
    CHECK(run({"run", "sh", "-c", "exit " + std::to_string(code)}).code == code);
  }
}

TEST_CASE("the first failure is first by the monotonic clock, whatever the workers' clocks say", "[run]") {
  Folder folder;
  // Both write a file; the one that fails first claims to have failed later. The other ends the moment it sees that.
  for (std::string first : {"0", "1"}) {
    auto mark = folder / ("pid" + first);
    auto write = [](const std::string& text, const std::string& time) {
      return R"(printf '{"message":{"message":")" + text + R"(","extraInfo":{"timestamp":")" + time +
             R"("}}}' > $TORCHELASTIC_ERROR_FILE; )";
    };
    auto script =
        "if [ $RANK = " + first + " ]; then " + write("first", "2000000000") + "echo $$ > " + mark + ".new; mv " +
        mark + ".new " + mark + "; exit 11; fi; trap '' TERM; " + write("second", "1000000000") + "while [ ! -e " +
        mark + " ]; do :; done; read pid < " + mark +
        "; while read -r a b state rest < /proc/$pid/stat && [ $state != Z ]; do :; done 2>/dev/null; exit 12";
    auto result = run(shell(2, script));
    INFO(result.error);
    require_clean(result);
    CHECK(result.code == 11);
    CHECK(result.said("rank " + first + " (local"));
    CHECK(result.said("error: first"));
  }
}

TEST_CASE("fifty launches at once do not collide", "[run]") {
  Folder folder;
  // All of them run until the last one does: they wait for a lock that is held here.
  auto gate = folder / "gate";
  int fd = open(gate.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  REQUIRE(flock(fd, LOCK_EX) == 0);
  std::vector<std::unique_ptr<Job>> jobs;
  for (int i = 0; i < 50; ++i)
    jobs.push_back(std::make_unique<Job>(shell(1, "echo port $MASTER_PORT; exec flock -s " + gate + " true")));
  for (auto& job : jobs) REQUIRE(job->wait_for("port "));
  close(fd);
  std::set<std::string> ports;
  for (auto& job : jobs) {
    auto result = job->finish();
    require_clean(result);
    CHECK(result.code == 0);
    ports.insert(result.lines("port").at(0));
  }
  CHECK(ports.size() == 50);
}

TEST_CASE("no more processes: the started workers are stopped", "[run]") {
  // Root has no limit, so somebody else starts the program, who must be able to read it.
  Folder folder;
  REQUIRE(chmod(folder.path().c_str(), 0755) == 0);
  bool is_root = geteuid() == 0;
  constexpr uid_t kNobodyElse = 54321;
  Job job(shell(8, "echo started; exec sleep 100"), {{"TMPDIR", "/nowhere"}}, [&] {
    rlimit limit{5, 5};
    // As nobody else has processes: launcher, guardian, three workers.
    if (is_root && (setgroups(0, nullptr) != 0 || setresgid(kNobodyElse, kNobodyElse, kNobodyElse) != 0)) _exit(99);
    setrlimit(RLIMIT_NPROC, &limit);
    if (is_root && setresuid(kNobodyElse, kNobodyElse, kNobodyElse) != 0) _exit(99);
  });
  auto result = job.finish();
  if (result.code == 127 && result.error.empty()) {
    WARN("another user may not read the program " + run_support::program());
    return;
  }
  require_clean(result);
  CHECK(result.code == 125);
  CHECK(result.said("The limit of processes is reached"));
  CHECK(result.said("ulimit -u"));
}

TEST_CASE("four workers, 200 lines of 5 kB each: none torn, none lost", "[run]") {
  auto result = run(shell(4,
                          "i=0; line=$(head -c 5000 /dev/zero | tr '\\0' x); while [ $i -lt 200 ]; do "
                          "echo $RANK-$i-$line-; i=$((i+1)); done; printf 'end\\001\\377%s' $RANK"));
  require_clean(result);
  auto lines = result.lines("-x");
  REQUIRE(lines.size() == 800);
  std::set<std::string> heads;
  for (const auto& line : lines) {
    heads.insert(line.substr(0, line.find("-x")));
    CHECK(line.size() == line.find("-x") + 5002);
  }
  CHECK(heads.size() == 800);
  CHECK(result.lines("end\001\377").size() == 4);
}

TEST_CASE("a gigabyte of output per rank: memory stays bounded", "[run]") {
  Job job(
      shell(1,
            "yes 0123456789012345678901234567890123456789012345678901234567890123456789012345678 | head -c 1000000000"),
      {}, [] { dup2(open("/dev/null", O_WRONLY | O_CLOEXEC), 1); });
  auto result = job.finish();
  require_clean(result);
  CHECK(result.code == 0);
  CHECK(result.peak_kilobytes > 0);
  CHECK(result.peak_kilobytes < (run_support::kSanitized ? 600000 : 24000));
}

TEST_CASE("a worker that the kernel killed for want of memory is reported as that", "[run]") {
  MemoryGroup group(run_support::kSanitized ? 400 << 20 : 64 << 20);
  if (!group) {
    WARN("no memory cgroup may be made here");
    return;
  }
  Folder folder;
  Job job(shell(2,
                "[ $RANK = 1 ] && head -c 600000000 /dev/zero | tail >/dev/null; [ $RANK = 1 ] || exec sleep 100; kill "
                "-KILL $$",
                {"--report", folder / "report.json"}),
          {}, [&] {
            if (!group.enter()) _exit(99);
          });
  auto result = job.finish();
  require_clean(result);
  INFO(result.error);
  CHECK(result.code == 137);
  CHECK(result.said("the kernel killed it because memory ran out"));
  auto report = fabric::read_json(read_file(folder / "report.json"));
  CHECK(report.at("attempts").as_list()[0].at("root_cause").at("out_of_memory").as_bool());
}

TEST_CASE("a container's quota of processors is the number of workers that auto means", "[run]") {
  control_group::OneProcessorGroup group;
  if (!group) {
    WARN("no cgroup with a quota of processors may be made here");
    return;
  }
  for (std::string number : {"auto", "cpu"}) {
    Job job({"run", "-n", number, "sh", "-c", "echo of $WORLD_SIZE"}, {{"CUDA_VISIBLE_DEVICES", ""}}, [&] {
      if (!group.enter()) _exit(99);
    });
    auto result = job.finish();
    require_clean(result);
    INFO(result.out << result.error);
    CHECK(result.lines("of 1").size() == 1);
  }
}

TEST_CASE("a Kubernetes trainer's variables are enough, and flags win", "[run]") {
  run_support::Variables trainer{{"PET_NNODES", "1"},      {"PET_NPROC_PER_NODE", "2"},
                                 {"PET_NODE_RANK", "0"},   {"PET_MASTER_ADDR", "localhost"},
                                 {"PET_MASTER_PORT", "0"}, {"WORLD_SIZE", "1"}};
  auto say = "echo $RANK of $WORLD_SIZE at $MASTER_ADDR ${PET_NNODES-none}";
  auto result = run({"run", "sh", "-c", say}, trainer);
  CHECK(result.lines() == std::vector<std::string>{"0 of 2 at localhost none", "1 of 2 at localhost none"});
  CHECK(run({"run", "-n", "1", "sh", "-c", say}, trainer).lines().size() == 1);
  trainer["PET_NPROC_PER_NODE"] = "auto";
  CHECK(run({"run", "sh", "-c", say}, trainer).code == 0);
  trainer["PET_NPROC_PER_NODE"] = "two";
  auto wrong = run({"run", "sh", "-c", say}, trainer);
  CHECK(wrong.code == 2);
  CHECK(wrong.said("--nproc-per-node two"));
}

TEST_CASE("a launcher inside of a launcher starts a job of its own", "[run]") {
  auto result = run({"run", "-n", "2", "--max-restarts", "5", "--role", "outer", "--tee", "3", run_support::program(),
                     "run", "-n", "2", "--max-restarts", "1", "sh", "-c",
                     "echo $RANK/$WORLD_SIZE $ROLE_NAME $TORCHELASTIC_MAX_RESTARTS $MASTER_PORT"});
  require_clean(result);
  CHECK(result.code == 0);
  std::set<std::string> ports;
  for (std::string rank : {"0", "1"}) {
    auto lines = result.lines(rank + "/2 default 1 ");
    REQUIRE(lines.size() == 2);
    for (const auto& line : lines) ports.insert(line.substr(line.rfind(' ')));
  }
  CHECK(ports.size() == 2);
}

TEST_CASE("the other commands of fabric", "[run]") {
  auto doctor = run({"doctor"});
  CHECK(doctor.code == 0);
  for (const char* text : {"What a run would choose", "strategy", "process group", "--nproc-per-node auto",
                           "A run would work here", "kubeflow", "tensorboard", "ddp_find_unused_parameters_true",
                           "powersgd", "bf16-mixed", "safetensors", "OneCycleLR"}) {
    INFO(text);
    CHECK(doctor.out.find(text) != std::string::npos);
  }
  auto inside = run({"run", "-n", "2", run_support::program(), "doctor"});
  CHECK(inside.lines("environment torchelastic").size() == 2);
  auto contradiction = run({"doctor"}, {{"RANK", "3"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "0"}});
  CHECK(contradiction.code == 1);
  CHECK(contradiction.out.find("!!") != std::string::npos);
  CHECK(contradiction.out.find("A run would NOT work here") != std::string::npos);
  CHECK(run({"doctor", "me"}).code == 2);
  auto alias = run({"run", "sh", "-c", run_support::program() + "run -n 2 sh -c 'echo $RANK of $WORLD_SIZE'"});
  CHECK(alias.lines("of 2").size() == 2);
  for (const char* command : {"verify", "inspect", "consolidate", "shard"}) {
    CHECK(run({"help"}).out.find(command) != std::string::npos);
    CHECK(run({"completion", "bash"}).out.find(std::string(" ") + command + " ") != std::string::npos);
  }
  CHECK(run({"completion", "bash"}).out.find("--nproc-per-node") != std::string::npos);
}

// `fabric run --hosts` over a real sshd, on machines that are network namespaces.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <regex>

#include "tests/ranks/ssh_support.h"
#include "tests/support/catch.h"

using run_support::Job;
using run_support::now;
using run_support::require_clean;
using run_support::Result;
using ssh_support::Machines;

namespace {

using Words = std::vector<std::string>;

bool has_machines() {
  static const std::string why = Machines::why_not();
  if (!why.empty()) WARN("skipped, no ssh: " + why);
  return why.empty();
}

const std::string kPlace = "echo r$RANK/$WORLD_SIZE l$LOCAL_RANK g$GROUP_RANK a$TORCHELASTIC_RESTART_COUNT; ";
const std::string kWait = kPlace + "exec sleep 100";
constexpr double kInterval = 0.6;

/// For --rdzv-conf; `last_call` seconds for hosts that are late.
std::string times(double last_call) {
  return "late_join_delay=0.2,join_timeout=20,connect_timeout=1,heartbeat_interval=" + std::to_string(kInterval) +
         ",last_call_timeout=" + std::to_string(last_call);
}

Words words_of(const Machines& machines, const std::string& hosts, const Words& flags, const Words& program) {
  Words words{"run", "--hosts", hosts, "--grace", "1", "--rdzv-conf", times(0.3)};
  for (const auto& more : {machines.flags(), flags, program}) words.insert(words.end(), more.begin(), more.end());
  return words;
}

std::unique_ptr<Job> start(const Machines& machines, const std::string& hosts, const std::string& script,
                           const Words& flags = {}, int machine = -1) {
  return std::make_unique<Job>(words_of(machines, hosts, flags, {"sh", "-c", script}), run_support::Variables{},
                               machines.enter(machine < 0 ? machines.desk() : machine));
}

/// The program without a file: the hosts cannot find it at the same place.
std::function<void()> run_from_nowhere(const Machines& machines, const Words& words) {
  auto copy = machines / "nowhere";
  std::filesystem::copy_file(run_support::program(), copy);
  auto enter = machines.enter(machines.desk());
  return [copy, enter, words] {
    enter();
    int fd = open(copy.c_str(), O_RDONLY);
    unlink(copy.c_str());
    Words line{"fabric"};
    line.insert(line.end(), words.begin(), words.end());
    std::vector<char*> arguments;
    for (auto& word : line) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    fexecve(fd, arguments.data(), environ);
  };
}

Result run_without_file(const Machines& machines, const Words& words) {
  return Job(words, {}, run_from_nowhere(machines, words)).finish();
}

}  // namespace

TEST_CASE("ranks on two hosts find their places, arguments, folder and what -x asks for", "[ssh]") {
  if (!has_machines()) return;
  Machines machines(2);
  auto script = kPlace +
                "echo \"$1|$2|$3\"; echo in $(pwd) with $ASKED_A and $ASKED_B; "
                "case $FABRIC_RDZV_TOKEN$HIDDEN in '') ;; *) exit 9;; esac; cat; exit 0";
  auto folder = machines / "a folder";
  std::filesystem::create_directory(folder);
  auto words =
      words_of(machines, machines.address(0) + ":2," + machines.address(1), {"-x", "ASKED_A", "-x", "ASKED_B=b b"},
               {"sh", "-c", script, "sh", "two  words", "'\"$HOME\\", "a\nnew line"});
  auto enter = machines.enter(machines.desk());
  Job job(words, {{"ASKED_A", "a'a"}, {"HIDDEN", "x"}}, [&] {
    enter();
    if (chdir(folder.c_str()) != 0) _exit(96);
  });
  auto result = job.finish();
  INFO(result.out << result.error);
  CHECK(result.code == 0);
  CHECK(result.lines("r0/3 l0 g0 a0").size() == 1);
  CHECK(result.lines("r1/3 l1 g0 a0").size() == 1);
  CHECK(result.lines("r2/3 l0 g1 a0").size() == 1);
  CHECK(result.lines("two  words|'\"$HOME\\|a").size() == 3);
  CHECK(result.lines("new line").size() == 3);
  CHECK(result.lines("in " + folder + " with a'a and b b").size() == 3);
  CHECK(result.out.find("[m1:2] r2/3") != std::string::npos);
  require_clean(result);
}

TEST_CASE("this machine is one of the hosts, by its address, and hosts come from a file", "[ssh]") {
  if (!has_machines()) return;
  Machines machines(2);
  std::ofstream(machines / "hosts") << "# two\n"
                                    << machines.address(0) << " slots=2 max_slots=2\n10.77.0.[2] slots=1\n";
  auto words = words_of(machines, "", {"--hostfile", machines / "hosts"}, {"sh", "-c", kPlace});
  words.erase(words.begin() + 1, words.begin() + 3);
  auto result = Job(words, {}, machines.enter(0)).finish();
  INFO(result.out << result.error);
  CHECK(result.code == 0);
  CHECK(result.lines("r1/3 l1 g0").size() == 1);
  CHECK(result.out.find("[m1:2] r2/3 l0 g1") != std::string::npos);
  require_clean(result);
}

TEST_CASE("the first failure gives the code, and is told once", "[ssh]") {
  if (!has_machines()) return;
  Machines machines(2);
  auto hosts = machines.address(0) + "," + machines.address(1);
  for (std::string code : {"7", "255"}) {
    auto job = start(machines, hosts, "[ $RANK = 1 ] || exec sleep 100; echo last words >&2; exit " + code);
    auto result = job->finish();
    INFO(result.out << result.error);
    CHECK(result.code == std::stoi(code));
    auto at = result.error.find("the job failed: rank 1 (local rank 0 on m1");
    CHECK(at != std::string::npos);
    CHECK(result.error.find("rank 1 (", at + 20) == std::string::npos);
    require_clean(result);
  }
}

TEST_CASE("a refused key, an unknown host, nobody there: each is told with what to do", "[ssh]") {
  if (!has_machines()) return;
  Machines machines(3);
  machines.refuse_key(1);
  machines.forget_host(2);
  auto begin = now();
  auto result =
      start(machines, machines.address(0) + "," + machines.address(1) + "," + machines.address(2), kWait)->finish();
  INFO(result.out << result.error);
  CHECK(result.code == 95);
  CHECK(now() - begin < 15);
  CHECK(result.said(machines.address(1) + ": "));
  CHECK(result.said("Permission denied (publickey)"));
  CHECK(result.said("ssh-add"));
  CHECK(result.said("Host key verification failed"));
  CHECK(result.said("fingerprint"));
  CHECK(result.said("the job was not started"));
  CHECK(result.out.empty());
  require_clean(result);
  // An elastic job does without them.
  auto some = start(machines, machines.address(1) + "," + machines.address(0) + "," + machines.address(2), kPlace,
                    {"--nnodes", "1:3"})
                  ->finish();
  INFO(some.out << some.error);
  CHECK(some.code == 0);
  CHECK(some.lines("r0/1").size() == 1);
  CHECK(some.said("Permission denied (publickey)"));
  require_clean(some);
}

TEST_CASE("a host without the program says so, and --copy brings it along", "[ssh]") {
  if (!has_machines()) return;
  Machines machines(1);
  auto missing = run_without_file(machines, words_of(machines, machines.address(0), {}, {"sh", "-c", kPlace}));
  INFO(missing.out << missing.error);
  CHECK(missing.code == 95);
  CHECK(missing.said("there is no program fabric"));
  CHECK(missing.said("--copy"));
  require_clean(missing);
  auto script = kPlace + "ls -d ${TMPDIR:-/tmp}/fabric-copy-* 2>/dev/null; echo looked; exit 3";
  auto copied =
      run_without_file(machines, words_of(machines, machines.address(0) + ":2", {"--copy"}, {"sh", "-c", script}));
  INFO(copied.out << copied.error);
  CHECK(copied.code == 3);
  CHECK(copied.lines("r0/2").size() == 1);
  CHECK(copied.out.find("fabric-copy-") == std::string::npos);
  require_clean(copied);
}

TEST_CASE("Ctrl-C ends all hosts, the second one at once", "[ssh]") {
  if (!has_machines()) return;
  Machines machines(2);
  auto hosts = machines.address(0) + "," + machines.address(1);
  auto job = start(machines, hosts, "trap 'echo interrupted; exit 0' INT; echo ready; while :; do sleep 0.05; done");
  REQUIRE(job->wait_for("ready", 2));
  job->signal(SIGINT);
  auto result = job->finish();
  INFO(result.out << result.error);
  CHECK(result.code == 130);
  CHECK(result.lines("interrupted").size() == 2);
  require_clean(result);
  auto stubborn =
      start(machines, hosts, "trap '' INT TERM; echo ready; while :; do sleep 0.05; done", {"--grace", "60"});
  REQUIRE(stubborn->wait_for("ready", 2));
  stubborn->signal(SIGINT);
  usleep(300000);
  auto begin = now();
  stubborn->signal(SIGINT);
  auto killed = stubborn->finish();
  INFO(killed.out << killed.error);
  CHECK(killed.code == 130);
  CHECK(now() - begin < 12);
  require_clean(killed);
}

TEST_CASE("Ctrl-C while a host does not answer ends at once", "[ssh]") {
  if (!has_machines()) return;
  Machines machines(2);
  machines.network().cut(1);
  auto job = start(machines, machines.address(0) + "," + machines.address(1), kWait);
  usleep(1000000);
  auto begin = now();
  job->signal(SIGINT);
  auto result = job->finish();
  INFO(result.out << result.error);
  CHECK(result.code == 130);
  CHECK(now() - begin < 10);
  CHECK(result.out.empty());
  require_clean(result);
}

TEST_CASE("no command line shows the secret or what -x names, and no launcher's variables do", "[ssh]") {
  if (!has_machines()) return;
  Machines machines(2);
  auto words =
      words_of(machines, machines.address(0) + "," + machines.address(1), {"-x", "HUSHED"}, {"sh", "-c", kWait});
  Job job(words, {{"FABRIC_RDZV_TOKEN", "open-sesame"}, {"HUSHED", "whisper"}}, machines.enter(machines.desk()));
  REQUIRE(job.wait_for("r0/2"));
  REQUIRE(job.wait_for("r1/2"));
  auto all = job.processes();
  all.push_back(job.pid());
  CHECK(all.size() >= 9);  // this launcher, and for each host ssh, a launcher, a guardian and a rank
  for (int pid : all) {
    auto folder = "/proc/" + std::to_string(pid);
    auto line = run_support::read_file(folder + "/cmdline"), variables = run_support::read_file(folder + "/environ");
    INFO(line);
    CHECK(line.find("open-sesame") == std::string::npos);
    CHECK(line.find("whisper") == std::string::npos);
    CHECK(variables.find("open-sesame") == std::string::npos);
  }
  job.signal(SIGTERM);
  require_clean(job.finish());
}

TEST_CASE("signals go on to the ranks, Ctrl-Z halts nothing, a hang-up ends all", "[ssh]") {
  if (!has_machines()) return;
  Machines machines(2);
  auto job = start(machines, machines.address(0) + "," + machines.address(1),
                   "trap 'echo usr1' USR1; echo ready; while :; do sleep 0.05; done");
  REQUIRE(job->wait_for("ready", 2));
  job->signal(SIGUSR1);
  CHECK(job->wait_for("usr1", 2));
  job->signal(SIGTSTP);
  CHECK(job->wait_for("is not halted by Ctrl-Z"));
  usleep(static_cast<useconds_t>(4 * kInterval * 1e6));
  CHECK(job->processes().size() >= 4);
  job->signal(SIGHUP);
  auto result = job->finish();
  INFO(result.out << result.error);
  CHECK(result.code == 129);
  require_clean(result);
}

TEST_CASE("the launcher is killed, or its network is cut: no rank is left on any host", "[ssh]") {
  if (!has_machines()) return;
  Machines machines(2);
  auto hosts = machines.address(0) + "," + machines.address(1);
  auto stubborn = "trap '' TERM; setsid sleep 100 & echo ready; while :; do sleep 0.05; done";
  auto killed = start(machines, hosts, stubborn);
  REQUIRE(killed->wait_for("ready", 2));
  CHECK(killed->processes().size() >= 6);
  killed->signal(SIGKILL);
  auto result = killed->finish();
  CHECK(result.code == 137);
  CHECK(result.left.empty());

  auto cut = start(machines, hosts, stubborn);
  REQUIRE(cut->wait_for("ready", 2));
  machines.network().cut(machines.desk());
  auto begin = now();
  // What is left is ssh and this launcher, on this side.
  auto far_left = [&] {
    int count = 0;
    for (int pid : cut->processes())
      count += run_support::read_file("/proc/" + std::to_string(pid) + "/comm") != "ssh\n";
    return count;
  };
  while (far_left() > 0 && now() - begin < 15) usleep(20000);
  CHECK(far_left() == 0);
  result = cut->finish();
  INFO(result.out << result.error);
  CHECK(result.code == 95);
  CHECK(result.said("its connection is gone"));
  require_clean(result);
}

TEST_CASE("a host dies: a fixed job ends and names it, an elastic one takes a spare", "[ssh]") {
  if (!has_machines()) return;
  Machines machines(3);
  auto fixed = start(machines, machines.address(0) + "," + machines.address(1), kWait);
  REQUIRE(fixed->wait_for("r1/2"));
  machines.kill_connections(1);
  auto result = fixed->finish();
  INFO(result.out << result.error);
  CHECK(result.code != 0);
  CHECK(result.said(machines.address(1) + ": its connection is gone"));
  require_clean(result);

  auto elastic = start(machines, machines.address(0) + "," + machines.address(1) + "," + machines.address(2),
                       kPlace + "[ $TORCHELASTIC_RESTART_COUNT = 0 ] || exit 0; exec sleep 100",
                       {"--nnodes", "1:2", "--rdzv-conf", times(20)});
  REQUIRE(elastic->wait_for("r1/2"));
  REQUIRE(elastic->wait_for("is a spare"));
  // The first host is where the others meet; of the two others the one that comes later is the spare.
  int spare =
      elastic->error_so_far().find("fabric: " + machines.address(2) + ": the job has all") != std::string::npos ? 2 : 1;
  int lost = 3 - spare;
  machines.lose(lost);
  auto other = elastic->finish();
  INFO(other.out << other.error);
  CHECK(other.code == 0);
  CHECK(other.lines("r0/2 l0 g0 a1").size() == 1);
  CHECK(other.out.find("[m" + std::to_string(spare) + ":1] r1/2 l0 g1 a1") != std::string::npos);
  CHECK(other.said(machines.address(lost) + ": its connection is gone"));
  require_clean(other);
}

TEST_CASE("lines of many ranks stay whole, and none is lost", "[ssh]") {
  if (!has_machines()) return;
  Machines machines(2);
  auto job = start(
      machines, machines.address(0) + ":2," + machines.address(1) + ":2",
      "i=0; while [ $i -lt 500 ]; do i=$((i+1)); echo \"line $i of $RANK xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx.\"; "
      "[ $((i % 50)) -gt 0 ] || echo \"error $i of $RANK yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy.\" >&2; done");
  auto result = job->finish();
  CHECK(result.code == 0);
  std::istringstream lines(result.out);
  std::regex form(R"(\[m[01]:[0-3]\] line \d+ of [0-3] x{40}\.)");
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    bool is_whole = std::regex_match(line, form);
    if (!is_whole) FAIL_CHECK("torn: " << line);
  }
  CHECK(count == 2000);
  require_clean(result);
}

TEST_CASE("fabric doctor tries each host", "[ssh]") {
  if (!has_machines()) return;
  Machines machines(2);
  auto doctor = [&] {
    Words words{"doctor", "--hosts", machines.address(0) + "," + machines.address(1)};
    for (const auto& word : machines.flags()) words.push_back(word);
    return Job(words, {}, machines.enter(machines.desk())).finish();
  };
  auto good = doctor();
  INFO(good.out << good.error);
  CHECK(good.code == 0);
  CHECK(good.lines(machines.address(1)).size() == 1);
  CHECK(good.out.find("processors") != std::string::npos);
  machines.refuse_key(1);
  auto bad = doctor();
  INFO(bad.out << bad.error);
  CHECK(bad.code == 1);
  CHECK(bad.out.find("Permission denied") != std::string::npos);
  require_clean(bad);
}

// What C++ programs tell `fabric run`: heartbeats, sections, and how they came to their end. Real ranks that hang and
// crash.
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include <fabric/base/tree_io.h>

#include "tests/ranks/run_support.h"
#include "tests/support/catch.h"

using run_support::Folder;
using run_support::Job;
using run_support::read_file;
using run_support::Result;
using run_support::run;

namespace {

std::vector<std::string> words(int ranks, const std::string& deed, const std::vector<std::string>& flags = {}) {
  std::vector<std::string> all{"run", "-n", std::to_string(ranks)};
  all.insert(all.end(), flags.begin(), flags.end());
  all.insert(all.end(), {FABRIC_RUN_PROGRAM, deed});
  return all;
}

struct Ended {
  Result result;
  fabric::Tree report;
  const fabric::Tree& cause() const { return report.at("attempts").as_list().back().at("root_cause"); }
};

Ended end_of(int ranks, const std::string& deed, std::vector<std::string> flags = {}) {
  Folder folder;
  flags.insert(flags.end(), {"--report", folder / "report.json"});
  auto result = run(words(ranks, deed, flags), {{"TORCHELASTIC_ERROR_FILE", folder / "own.json"}});
  INFO(result.out << result.error);
  REQUIRE(result.left.empty());
  return {result, fabric::read_json(read_file(folder / "report.json"))};
}

}  // namespace

TEST_CASE("a rank that hangs before a barrier is named with its section and its stack", "[run]") {
  auto [result, report] = end_of(3, "hang", {"--heartbeat-timeout", "0.5", "--grace", "5"});
  INFO(result.error);
  CHECK(result.code == 94);
  CHECK(result.said("rank 1 (local rank 1"));
  CHECK(result.said("gave no heartbeat for 0."));
  CHECK(result.said("in section 'load_batch_3'"));
  CHECK(result.said("its last heartbeats: step 7, section 'load_batch_3'"));
  CHECK(result.said("other ranks: stopped: 0 (in section 'barrier'), 2 (in section 'barrier')"));
  CHECK(result.said("where its threads were:"));
  // Whoever has a debugger is told the function.
  if (result.said("#0")) CHECK(result.said("hang_before_barrier"));
  const auto& cause = report.at("attempts").as_list().back().at("root_cause");
  CHECK(cause.at("rank").as_int() == 1);
  CHECK(cause.at("section").as_string() == "load_batch_3");
  CHECK(cause.at("step").as_int() == 7);
  CHECK_FALSE(cause.at("stacks").as_string().empty());
}

TEST_CASE("a section that lasts longer than it may is a hang, heartbeats or not", "[run]") {
  auto ended = end_of(1, "limit");
  CHECK(ended.result.code == 94);
  CHECK(ended.result.said("did not leave section 'all_reduce' for 0."));
  CHECK(ended.result.said("(limit 0.3 s)"));
}

TEST_CASE("a hang is one of the failures after which the job starts again", "[run]") {
  auto result = run(words(1, "limit", {"--max-restarts", "1", "--grace", "2"}));
  CHECK(result.code == 94);
  CHECK(result.said("restart 1 of at most 1"));
  CHECK(result.said("attempt 1: rank 0 did not leave section 'all_reduce'"));
}

TEST_CASE("a busy loop with a thread that beats trips the progress limit", "[run]") {
  auto result = run(words(1, "busy", {"--progress-timeout", "0.4", "--heartbeat-timeout", "0.3"}));
  CHECK(result.code == 94);
  CHECK(result.said("stayed at step 41 for 0."));
  if (result.said("#0")) CHECK(result.said("beat_without_progress"));
}

TEST_CASE("a slow first step is allowed to be slow", "[run]") {
  auto result = run(words(2, "slow", {"--heartbeat-timeout", "0.4", "--heartbeat-warmup", "20"}));
  INFO(result.error);
  CHECK(result.code == 0);
}

TEST_CASE("a program forbids the restart", "[run]") {
  auto result = run(words(1, "noretry", {"--max-restarts", "3"}));
  CHECK(result.code == 1);
  CHECK(result.lines("attempt").size() == 1);
  CHECK(result.said("not to be started again: the data are broken"));
}

TEST_CASE("heartbeats never wait for a launcher that is stopped, and what is lost raises no alarm", "[run]") {
  Job job(words(1, "flood", {"--heartbeat-timeout", "5"}));
  REQUIRE(job.wait_for("ready 1"));
  job.signal(SIGSTOP);
  usleep(1000000);
  job.signal(SIGCONT);
  auto result = job.finish();
  INFO(result.out << result.error);
  CHECK(result.code == 0);
  CHECK(result.lines("quick 1 same 1").size() == 1);
}

TEST_CASE("without a launcher heartbeats do nothing, and a stale descriptor is left alone", "[run]") {
  Folder folder;
  auto path = folder / "file";
  auto line = "exec 5>" + path +
              "; FABRIC_HEARTBEAT_FD=5 " FABRIC_RUN_PROGRAM " beat; FABRIC_HEARTBEAT_FD=x " FABRIC_RUN_PROGRAM
              " beat; FABRIC_HEARTBEAT_FD=77 " FABRIC_RUN_PROGRAM " beat";
  CHECK(run({"run", "sh", "-c", line}).code == 0);
  CHECK(read_file(path).empty());
}

TEST_CASE("a forked helper does not speak for its rank", "[run]") {
  auto ended = end_of(1, "fork", {"--heartbeat-timeout", "0.4", "--grace", "1"});
  CHECK(ended.result.code == 94);
}

TEST_CASE("an exception that nobody catches: type, text and where it was thrown", "[run]") {
  auto ended = end_of(2, "throw");
  INFO(ended.result.error);
  CHECK(ended.result.code == 134);
  CHECK(ended.result.said("fabric::CheckpointCorrupt: shard 'ü' is cut off ?\n"));
  CHECK(ended.result.said("\"after\" 12 bytes"));
  CHECK(ended.result.said("#0 (anonymous namespace)::load_shard("));
  CHECK(ended.result.said("terminate called after throwing"));
  CHECK(ended.cause().at("backtrace").as_string().find("main+0x") != std::string::npos);
}

TEST_CASE("other ends: a number thrown, an error caught, signals, too deep a recursion", "[run]") {
  CHECK(end_of(1, "throw-number").result.said("error: int"));
  auto caught = end_of(1, "catch");
  CHECK(caught.result.code == 4);
  CHECK(caught.result.said("fabric::CheckpointCorrupt: shard 'x'"));
  auto crashed = end_of(1, "crash");
  INFO(crashed.result.error);
  CHECK(crashed.result.code == 139);
  CHECK(crashed.cause().at("error").as_string() == "Signal 11 (SIGSEGV) at address 0x8");
  auto stack = crashed.cause().at("backtrace").as_string();
  auto place = stack.find("(anonymous namespace)::write_through(");
  CHECK((run_support::kSanitized ? place != std::string::npos : place == 3));  // a sanitizer's own frames are above
  auto aborted = end_of(1, "abort");
  CHECK(aborted.result.code == 134);
  CHECK(aborted.cause().at("error").as_string() == "Signal 6 (SIGABRT)");
  CHECK(aborted.cause().at("backtrace").as_string().find("main+0x") != std::string::npos);
  auto deep = end_of(1, "overflow");
  CHECK(deep.result.code == 139);
  CHECK(deep.cause().at("error").as_string().starts_with("Signal 11 (SIGSEGV) at address 0x"));
}

TEST_CASE("handlers of the program and crashes of its helpers are left alone", "[run]") {
  CHECK(end_of(1, "own-handler").result.code == 42);
  auto child = end_of(1, "child");
  CHECK(child.result.code == 7);
  CHECK_FALSE(child.result.said("SIGABRT"));
}

TEST_CASE("the program's hook for preemption hears a signal once or twice and goes on", "[run]") {
  Job job(words(2, "preempt"), {{"SLURM_RESTART_COUNT", "2"}});
  REQUIRE(job.wait_for("ready", 2));
  job.signal(SIGUSR1);
  job.signal(SIGUSR1);
  auto result = job.finish();
  INFO(result.error);
  CHECK(result.code == 0);
  CHECK(result.lines("signal 10 restarts 2").size() == 2);
  auto nowhere = run(words(1, "requeue"), {{"SLURM_JOB_ID", ""}});
  CHECK(nowhere.code == 8);
  CHECK(nowhere.said("no SLURM job"));
}

TEST_CASE("a job goes back into the queue by scontrol, an array's task under its own name", "[run]") {
  Folder folder;
  auto told = folder / "told";
  run_support::write_script(folder / "scontrol", "echo \"$@\" >> " + told + "\n[ $2 != 13 ]");
  auto path = folder.path() + ":/usr/bin:/bin";
  CHECK(run(words(1, "requeue"), {{"PATH", path}, {"SLURM_JOB_ID", "12"}}).code == 0);
  auto array = run_support::Variables{
      {"PATH", path}, {"SLURM_JOB_ID", "77"}, {"SLURM_ARRAY_JOB_ID", "70"}, {"SLURM_ARRAY_TASK_ID", "3"}};
  CHECK(run(words(1, "requeue"), array).code == 0);
  CHECK(read_file(told) == "requeue 12\nrequeue 70_3\n");
  auto refused = run(words(1, "requeue"), {{"PATH", path}, {"SLURM_JOB_ID", "13"}});
  CHECK(refused.code == 8);
  CHECK(refused.said("scontrol requeue 13 ended with code 1"));
}

TEST_CASE("a setting that is wrong is told in one line, ends with 2 and is not tried again", "[run]") {
  for (auto [deed, text] : {std::pair("setting", "there is no strategy 'dpp'; did you mean 'ddp'?"),
                            {"parse", "train: unknown flag --epohcs; did you mean --epochs?"}}) {
    INFO(deed);
    auto lines = [](const Result& result) { return std::count(result.error.begin(), result.error.end(), '\n'); };
    for (int ranks : {1, 3}) {
      auto result = run(words(ranks, deed, {"--max-restarts", "3"}), {{"OMP_NUM_THREADS", "1"}});
      INFO(result.error);
      run_support::require_clean(result);
      CHECK(result.code == 2);
      CHECK(result.said(text));
      CHECK(lines(result) == 1);
    }
    // Without a launcher.
    auto pipe = popen(("exec 2>&1; '" FABRIC_RUN_PROGRAM "' " + std::string(deed)).c_str(), "r");
    REQUIRE(pipe);
    std::string output;
    for (int c; (c = fgetc(pipe)) != EOF;) output += static_cast<char>(c);
    INFO(output);
    CHECK(WEXITSTATUS(pclose(pipe)) == 2);
    CHECK(output.find(text) != std::string::npos);
    CHECK(std::count(output.begin(), output.end(), '\n') == 1);
  }
}

TEST_CASE("a setting that is wrong on a later rank alone is told by the launcher", "[run]") {
  auto [result, report] = end_of(3, "setting-1", {"--max-restarts", "3"});
  CHECK(result.code == 2);
  CHECK(result.said("fabric: rank 1: "));
  CHECK(result.said("there is no strategy 'dpp'"));
  CHECK(report.at("attempts").as_list().size() == 1);
  CHECK(report.at("attempts").as_list()[0].at("root_cause").at("rank").as_int() == 1);
}

TEST_CASE("a terminate handler of the program comes before ours", "[run]") {
  CHECK(run(words(1, "setting-handled")).code == 43);
}

TEST_CASE("reports and error files leave devices, pipes and links what they are", "[run]") {
  namespace fs = std::filesystem;
  Folder folder;
  const auto run_with = [&](const std::string& report, const std::string& own) {
    return run(words(1, "throw", {"--report", report}), {{"TORCHELASTIC_ERROR_FILE", own}});
  };
  fs::create_symlink("/dev/null", folder / "link");
  CHECK(run_with("/dev/null", folder / "link").code == 134);
  CHECK(fs::is_character_file("/dev/null"));
  CHECK(fs::is_symlink(folder / "link"));
  if (mknod((folder / "null").c_str(), S_IFCHR | 0600, makedev(1, 3)) == 0) {  // root may
    run_with(folder / "null", folder / "null");
    CHECK(fs::is_character_file(folder / "null"));
  }
  REQUIRE(mkfifo((folder / "pipe").c_str(), 0600) == 0);
  auto result = run_with(folder / "pipe", folder / "pipe");
  CHECK(result.said("a pipe that nobody reads"));
  CHECK(fs::is_fifo(folder / "pipe"));
  int reader = open((folder / "pipe").c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  run_with(folder / "pipe", "/dev/null");
  char text[16] = {};
  CHECK(read(reader, text, 1) == 1);
  CHECK(text[0] == '{');
  close(reader);
  // Names that somebody planted beside the report.
  std::ofstream(folder / "precious") << "kept";
  for (const char* planted : {"report.new", ".report.partial"}) fs::create_symlink("precious", folder / planted);
  run_with(folder / "report", folder / "own");
  CHECK(read_file(folder / "precious") == "kept");
  CHECK(fabric::read_json(read_file(folder / "report")).at("exit_code").as_int() == 134);
  CHECK(fabric::read_json(read_file(folder / "own")).at("message").at("errorCode").as_int() == 134);
}

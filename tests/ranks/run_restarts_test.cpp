// How a job ends by itself: which worker is the cause, with which code, what is said of it, and when all start again.
#include <signal.h>
#include <unistd.h>

#include <filesystem>

#include <fabric/base/tree_io.h>

#include "tests/ranks/run_support.h"
#include "tests/support/catch.h"

using run_support::Folder;
using run_support::Job;
using run_support::read_file;
using run_support::require_clean;
using run_support::run;
using run_support::shell;

TEST_CASE("the first failed worker is the cause, the others were stopped", "[run]") {
  auto result = run(shell(3, "[ $RANK = 1 ] && { echo lost it >&2; exit 7; }; sleep 100"));
  require_clean(result);
  CHECK(result.code == 7);
  CHECK(result.said("rank 1 (local rank 1 on"));
  CHECK(result.said("ended with exit code 7"));
  CHECK(result.said("last lines of its stderr:\n      lost it"));
  CHECK(result.said("other ranks: stopped: 0, 2"));
}

TEST_CASE("exit codes and signals are passed on", "[run]") {
  for (int code : {1, 2, 93, 126, 255}) CHECK(run({"run", "sh", "-c", "exit " + std::to_string(code)}).code == code);
  for (auto [name, code] : {std::pair("SEGV", 139), {"KILL", 137}, {"ABRT", 134}}) {
    auto result = run({"run", "-n", "2", "sh", "-c", "[ $RANK = 1 ] && kill -" + std::string(name) + " $$; sleep 100"});
    require_clean(result);
    CHECK(result.code == code);
    CHECK(result.said("(SIG" + std::string(name) + ")"));
  }
  CHECK(run({"run", "sh", "-c", "ulimit -c 0; kill -SEGV $$"}).said("no core was dumped"));
}

TEST_CASE("two failures in a row stay in order", "[run]") {
  for (int first : {0, 1}) {
    auto script = "[ $RANK = " + std::to_string(first) + " ] || sleep 0.05; exit $((10 + RANK))";
    CHECK(run(shell(2, script)).code == 10 + first);
  }
}

TEST_CASE("error files, good and hostile", "[run]") {
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

TEST_CASE("rank 0 ends, the others go on, or are named when --require-all is over", "[run]") {
  CHECK(run(shell(2, "[ $RANK = 0 ] || sleep 0.2")).code == 0);
  auto result = run(shell(3, "[ $RANK = 0 ] || sleep 100", {"--require-all", "0.2"}));
  require_clean(result);
  CHECK(result.code == 97);
  CHECK(result.said("these ranks still ran: 1, 2"));
}

TEST_CASE("a rank that hangs is named with its section and where it is", "[run]") {
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

TEST_CASE("who ends a job while a debugger looks at a rank does not wait for the debugger", "[run]") {
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

TEST_CASE("progress and warm-up", "[run]") {
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

TEST_CASE("restarts: all workers, one count, one budget, and none where the worker forbids it", "[run]") {
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

TEST_CASE("three restarts without progress are enough", "[run]") {
  auto result = run(shell(1, "exec 9>&$FABRIC_HEARTBEAT_FD; echo 'step 10' >&9; sleep 0.05; echo attempt; exit 1",
                          {"--max-restarts", "100"}));
  require_clean(result);
  CHECK(result.code == 96);
  CHECK(result.lines("attempt").size() == 4);
  CHECK(result.said("no further than step 10"));
}

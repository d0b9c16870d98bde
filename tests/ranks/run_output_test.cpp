// What workers write: whole lines, files of each rank, full disks, and readers that are slow or gone.
#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "tests/ranks/run_support.h"
#include "tests/support/catch.h"

using run_support::Folder;
using run_support::Job;
using run_support::read_file;
using run_support::require_clean;
using run_support::run;
using run_support::shell;

TEST_CASE("a full disk of logs hurts no worker", "[run]") {
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

TEST_CASE("lines are whole and none is lost", "[run]") {
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

TEST_CASE("a closed stdout, and much output", "[run]") {
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

TEST_CASE("a stdout that cannot be written is said once on stderr, and hurts nobody", "[run]") {
  auto full = [] {
    int fd = open("/dev/full", O_WRONLY);
    dup2(fd, 1);
    close(fd);
  };
  auto result = run(shell(2, "for i in 1 2 3; do echo line; sleep 0.02; done"), {}, full);
  require_clean(result);
  CHECK(result.code == 0);
  auto told = result.error.find("warning: stdout cannot be written: No space left on device; its lines are lost");
  CHECK(told != std::string::npos);
  CHECK(result.error.find("cannot be written", told + 30) == std::string::npos);
  for (const auto& words :
       {std::vector<std::string>{"--version"}, {"help"}, {"run", "--help"}, {"completion", "bash"}}) {
    INFO(words[0]);
    auto silent = run(words, {}, full);
    CHECK(silent.code == 1);
    CHECK(silent.said("stdout cannot be written: No space left on device"));
  }
}

TEST_CASE("files that may not grow cost their lines and not the launcher", "[run]") {
  Folder folder;
  auto out = folder / "out";
  auto result = run(shell(2, "echo line; echo error >&2; exit 3", {"--log-dir", folder.path(), "--tee", "3"}), {}, [&] {
    int fd = open(out.c_str(), O_WRONLY | O_CREAT, 0644);
    dup2(fd, 1);
    close(fd);
    rlimit none{0, 0};
    setrlimit(RLIMIT_FSIZE, &none);
  });
  require_clean(result);
  INFO(result.error);
  CHECK(result.code == 3);
  CHECK(result.said("File too large; the run goes on without it"));
  CHECK(result.said("stdout cannot be written: File too large"));
  // A worker has the signal as it was.
  auto worker = run(shell(1, "head -c 1 /dev/zero > " + (folder / "file")), {}, [] {
    rlimit none{0, 0};
    setrlimit(RLIMIT_FSIZE, &none);
  });
  CHECK(worker.code == 128 + SIGXFSZ);
}

TEST_CASE("what ranks write does not reach the terminal through a report", "[run]") {
  auto result = run(shell(1, "printf 'a\\033[2Jb\\007c\\n' >&2; exit 3"));
  require_clean(result);
  CHECK(result.error.find("last lines of its stderr:\n      a\\x1b[2Jb\\x07c\n") != std::string::npos);
}

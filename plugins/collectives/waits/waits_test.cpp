// Long waits, deaths of peers, and what must not end the process.
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <thread>

#include <torch/torch.h>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <fabric/plugins/collectives/process_group.h>

#include "tests/support/group_of_ranks.h"

using fabric::ReduceOp;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

namespace {

volatile sig_atomic_t broken_pipes = 0;
void count_broken_pipe(int) { broken_pipes = broken_pipes + 1; }

template <class Error, class Action>
std::string text_of(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  throw std::runtime_error("nothing of the expected kind was thrown");
}

}  // namespace

RANKS_BODY("a rank that is late") {
  auto group = ranks::group_from_env({.backend = "gloo", .timeout_seconds = 12});
  group.barrier("start");
  if (rank == 1) std::this_thread::sleep_for(std::chrono::seconds(9));
  group.barrier("late");
}

TEST_CASE("a long wait is announced well before its end, with what the others do", "[collectives][waits]") {
  auto outcomes = ranks::run("a rank that is late", {.world_size = 3});
  for (const auto& outcome : outcomes) {
    INFO(outcome.output);
    CHECK(outcome.exit_code == 0);
  }
  INFO(outcomes[0].output << outcomes[2].output);
  // One rank speaks for those that wait.
  const auto& text = outcomes[0].output;
  CHECK(text.find("rank 0 waits in barrier(\"late\") for ") != std::string::npos);
  CHECK(text.find("rank 1 is outside of collectives, the last of which was barrier") != std::string::npos);
  CHECK(text.find("rank 2 waits in barrier(\"late\")") != std::string::npos);
  CHECK(text.find("The wait ends after 12 s") != std::string::npos);
  CHECK(outcomes[2].output.find("waits in") == std::string::npos);
}

RANKS_BODY("a rank that does not come") {
  auto group = ranks::group_from_env({.backend = "gloo", .timeout_seconds = 3});
  ranks::Processes processes(group);
  group.barrier("start");
  if (rank == 1) {
    processes.outlive(0);
    _exit(0);
  }
  auto text = text_of<fabric::TimeoutError>([&] { group.all_reduce(torch::ones({2}), ReduceOp::sum); });
  for (std::string part : {"rank 1 did not come", "rank 0: all_reduce",
                           "rank 1: outside of collectives, the last of which was barrier", "rank 2: all_reduce"})
    if (text.find(part) == std::string::npos) ranks::fail(__FILE__, __LINE__, part + " is missing in: " + text);
  if (rank == 0) processes.outlive(2);  // which reads the store that it serves
}

TEST_CASE("a timeout says what every rank was doing", "[collectives][waits]") {
  ranks::run_and_require("a rank that does not come", {.world_size = 3});
}

// Rank 2 dies in the middle of a stream of large messages, so that the others write to a connection that is gone.
RANKS_BODY("a peer dies in an all-reduce") {
  struct sigaction action {};
  action.sa_handler = count_broken_pipe;
  sigaction(SIGPIPE, &action, nullptr);
  auto group = ranks::group_from_env({.backend = "gloo", .timeout_seconds = 20});
  auto large = torch::ones({1 << 20});
  group.all_reduce_(large, ReduceOp::max);
  if (rank == 2) {
    std::thread([] {
      std::this_thread::sleep_for(milliseconds(20));
      kill(getpid(), SIGKILL);
    }).detach();
    for (;;) group.all_reduce_(large, ReduceOp::max);
  }
  text_of<fabric::CollectiveError>([&] {
    for (;;) group.all_reduce_(large, ReduceOp::max);
  });
  struct sigaction now {};
  sigaction(SIGPIPE, nullptr, &now);
  RANK_CHECK(now.sa_handler == count_broken_pipe);
  RANK_CHECK(broken_pipes == 0);
  sigset_t blocked;
  pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
  RANK_CHECK(!sigismember(&blocked, SIGPIPE));
  // The program's own broken pipes still come to its own handler.
  int ends[2];
  RANK_CHECK(pipe(ends) == 0);
  close(ends[0]);
  RANK_CHECK(write(ends[1], "x", 1) < 0 && broken_pipes == 1);
}

RANKS_BODY("a peer dies among messages") {
  signal(SIGPIPE, SIG_DFL);
  auto group = ranks::group_from_env({.backend = "gloo", .timeout_seconds = 20});
  auto large = torch::ones({1 << 18});
  group.barrier();
  if (rank == 1) kill(getpid(), SIGKILL);
  text_of<fabric::CollectiveError>([&] {
    for (;;) group.send(large, 1, 0);
  });
}

TEST_CASE("the death of a peer is an error and no SIGPIPE", "[collectives][waits]") {
  for (int turn = 0; turn < 6; ++turn) {
    auto outcomes = ranks::run("a peer dies in an all-reduce", {.world_size = 3});
    for (int rank : {0, 1}) {
      INFO(outcomes[rank].output);
      CHECK(outcomes[rank].exit_code == 0);
    }
    CHECK(outcomes[2].exit_code == 128 + SIGKILL);
  }
  auto outcomes = ranks::run("a peer dies among messages", {.world_size = 2});
  INFO(outcomes[0].output);
  CHECK(outcomes[0].exit_code == 0);
}

// Leaves a process behind that holds this one's connections to the other ranks open, but none of the store's.
void leave_connections_open() {
  if (fork() != 0) return;
  const int store = std::atoi(std::getenv("MASTER_PORT"));
  auto is_of_store = [store](int fd) {
    sockaddr_in6 here{}, there{};
    socklen_t size = sizeof here, other = sizeof there;
    if (getsockname(fd, reinterpret_cast<sockaddr*>(&here), &size) != 0) return true;  // no socket at all
    if (getpeername(fd, reinterpret_cast<sockaddr*>(&there), &other) != 0) return true;
    return ntohs(here.sin6_port) == store || ntohs(there.sin6_port) == store;  // at the same place for IPv4
  };
  for (int fd = 0; fd < 1024; ++fd)
    if (is_of_store(fd)) close(fd);
  alarm(20);
  for (;;) pause();
}

// Gloo hears nothing then, and would wait for the deadline.
RANKS_BODY("a rank ends and its connections stay") {
  auto group = ranks::group_from_env({.timeout_seconds = 300});
  group.barrier();
  if (rank == std::atoi(std::getenv("FABRIC_TEST_DYING"))) {
    leave_connections_open();
    kill(getpid(), SIGKILL);
  }
  auto begin = steady_clock::now();
  auto text = text_of<fabric::CollectiveError>([&] { group.barrier(); });
  RANK_CHECK(steady_clock::now() - begin < std::chrono::seconds(60));
  const std::string dead = std::string("rank ") + std::getenv("FABRIC_TEST_DYING");
  if (text.find(dead) == std::string::npos) ranks::fail(__FILE__, __LINE__, dead + " is missing in: " + text);
}

TEST_CASE("the end of a rank is noticed though its connections stay", "[collectives][waits]") {
  for (int dying : {0, 1}) {
    auto outcomes = ranks::run("a rank ends and its connections stay",
                               {.world_size = 2, .env = {{"FABRIC_TEST_DYING", std::to_string(dying)}}});
    INFO(outcomes[1 - dying].output);
    CHECK(outcomes[1 - dying].exit_code == 0);
    CHECK(outcomes[dying].exit_code == 128 + SIGKILL);
  }
}

// Their messages never meet, so that Gloo itself would wait for the deadline.
RANKS_TEST("without the check different operations are an error on every rank within seconds", "[collectives][waits]",
           2) {
  auto group = ranks::group_from_env({.backend = "gloo", .timeout_seconds = 300, .check = false});
  ranks::Processes processes(group);
  RANK_CHECK(group.all_reduce(torch::ones({1}), ReduceOp::sum).item<float>() == 2);
  auto begin = steady_clock::now();
  auto text = text_of<fabric::MismatchError>([&] {
    if (rank == 0)
      group.all_reduce(torch::ones({500}), ReduceOp::sum);
    else
      group.all_gather(torch::ones({100000}));
  });
  RANK_CHECK(steady_clock::now() - begin < std::chrono::seconds(60));
  RANK_CHECK(!group.is_usable());
  for (std::string part : {"rank 0: all_reduce of 2000 bytes", "rank 1: all_gather of 400000 bytes"})
    if (text.find(part) == std::string::npos) ranks::fail(__FILE__, __LINE__, part + " is missing in: " + text);
  if (rank == 0) processes.outlive(1);  // which reads what each did, from the store that it serves
}

// The smaller one gets a message that is larger than its buffer, which Gloo notices in its own thread.
RANKS_TEST("without the check tensors of unequal sizes are an error at once", "[collectives][waits]", 2) {
  auto group = ranks::group_from_env({.backend = "gloo", .timeout_seconds = 120, .check = false});
  ranks::Processes processes(group);
  RANK_CHECK(group.all_reduce(torch::ones({1}), ReduceOp::sum).item<float>() == 2);
  auto begin = steady_clock::now();
  text_of<fabric::CollectiveError>([&] { group.all_reduce(torch::ones({rank == 0 ? 500 : 100000}), ReduceOp::sum); });
  RANK_CHECK(steady_clock::now() - begin < std::chrono::seconds(30));
  RANK_CHECK(!group.is_usable());
  if (rank == 0) processes.outlive(1);
}

RANKS_TEST("without the check ranks on two lanes find out that they wait for each other", "[collectives][waits]", 2) {
  auto group = ranks::group_from_env({.backend = "gloo", .timeout_seconds = 60, .check = false});
  ranks::Processes processes(group);
  auto apart = group.apart("second");
  RANK_CHECK(!(apart == group) && apart.size() == 2);
  RANK_CHECK(apart.all_reduce(torch::ones({1}), ReduceOp::sum).item<float>() == 2);
  auto begin = steady_clock::now();
  text_of<fabric::CollectiveError>([&] { (rank == 0 ? group : apart).barrier(); });
  RANK_CHECK(steady_clock::now() - begin < std::chrono::seconds(30));
  RANK_CHECK(!group.is_usable() || !apart.is_usable());
  if (rank == 0) processes.outlive(1);
}

RANKS_TEST("two checks on two lanes meet in one", "[collectives][waits]", 3) {
  auto group = ranks::group_from_env({.backend = "gloo", .timeout_seconds = 60});
  auto pair = group.subgroup({0, 1}, "pair");
  auto text = text_of<fabric::MismatchError>([&] {
    if (rank == 0)
      pair.barrier("pair's");
    else
      group.barrier("all's");
  });
  for (std::string part : {"rank 0: barrier(\"pair's\")", "rank 1: barrier(\"all's\")", "rank 2: barrier(\"all's\")"})
    if (text.find(part) == std::string::npos) ranks::fail(__FILE__, __LINE__, part + " is missing in: " + text);
  RANK_CHECK(group.all(true));
}

// Long, but of use: nobody may be told that it can have no end.
RANKS_TEST("a wait for a slow rank on another lane is none in vain", "[collectives][waits]", 3) {
  auto group = ranks::group_from_env({.backend = "gloo", .timeout_seconds = 60});
  auto pair = group.subgroup({0, 1}, "pair");
  if (rank == 1) std::this_thread::sleep_for(milliseconds(3500));
  if (pair) pair.barrier();
  group.barrier();
  auto apart = group.apart("second");
  if (rank == 2) std::this_thread::sleep_for(milliseconds(3500));
  apart.barrier();
  group.barrier();
}

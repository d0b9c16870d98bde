// What happens when ranks disagree, are late, or are gone.
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include <torch/torch.h>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <fabric/plugins/collectives/process_group.h>

#include "tests/support/group_of_ranks.h"

using at::Tensor;
using fabric::ReduceOp;
using std::chrono::seconds;
using std::chrono::steady_clock;

namespace {

template <class Error, class Action>
std::string message_of(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  throw std::runtime_error("nothing of the expected kind was thrown");
}

bool holds(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return true;
  ranks::fail(__FILE__, __LINE__, "'" + part + "' is missing in: " + text);
}

double seconds_since(steady_clock::time_point begin) {
  return std::chrono::duration<double>(steady_clock::now() - begin).count();
}

}  // namespace

ALL_BACKENDS_TEST("ranks that disagree get an error on every rank and go on", "[collectives][failures]", 2) {
  auto group = ranks::group_from_env();
  using fabric::MismatchError;
  auto shape = message_of<MismatchError>([&] { group.all_reduce(torch::ones({2, rank + 1}), ReduceOp::sum); });
  RANK_CHECK(holds(shape, "rank 0: all_reduce(sum) of Float [2, 1]") &&
             holds(shape, "rank 1: all_reduce(sum) of Float [2, 2]"));
  auto type = message_of<MismatchError>(
      [&] { group.all_reduce(torch::ones({2}, rank == 0 ? torch::kFloat : torch::kDouble), ReduceOp::sum); });
  RANK_CHECK(holds(type, "Float [2]") && holds(type, "Double [2]"));
  auto op =
      message_of<MismatchError>([&] { group.all_reduce(torch::ones({2}), rank == 0 ? ReduceOp::min : ReduceOp::max); });
  RANK_CHECK(holds(op, "all_reduce(min)") && holds(op, "all_reduce(max)"));
  auto kind = message_of<MismatchError>([&] {
    if (rank == 0)
      group.barrier("save");
    else
      group.all_gather_value("x");
  });
  RANK_CHECK(holds(kind, "rank 0: barrier(\"save\")") && holds(kind, "rank 1: all_gather of a value"));
  auto root = message_of<MismatchError>([&] { group.broadcast_value(1, rank); });
  RANK_CHECK(holds(root, "root 0") && holds(root, "root 1"));
  auto barrier = message_of<MismatchError>([&] { group.barrier(rank == 0 ? "a" : "b"); });
  RANK_CHECK(holds(barrier, "barrier(\"a\")") && holds(barrier, "barrier(\"b\")"));
  auto dims = message_of<MismatchError>([&] {
    group.all_gather(rank == 0 ? torch::ones({2}) : torch::ones({2, 2}), true);
  });
  RANK_CHECK(holds(dims, "[2, 2]"));
  if (rank == 0) {
    group.send(torch::ones({3}), 1);
    group.send(torch::ones({4}), 1);
  } else {
    auto three = torch::zeros({3, 1}), four = torch::zeros({4});
    RANK_CHECK(holds(message_of<MismatchError>([&] { group.recv_(three, 0); }), "Float [3]"));
    group.recv_(four, 0);
    RANK_CHECK(four.sum().item<float>() == 4);
  }
  RANK_CHECK(group.all_reduce(torch::ones({1}), ReduceOp::sum).item<float>() == 2);
}

// A group without the check still compares what it must know to allocate memory.
ALL_BACKENDS_TEST("unequal types are found without the check where shapes are exchanged", "[collectives][failures]",
                  2) {
  auto group = ranks::group_from_env({.timeout_seconds = 30, .check = false});
  RANK_CHECK(group.all_reduce(torch::ones({1}), ReduceOp::sum).item<float>() == 2);
  auto text = message_of<fabric::MismatchError>(
      [&] { group.all_gather(torch::ones({rank + 1}, rank == 0 ? torch::kFloat : torch::kDouble), true); });
  RANK_CHECK(holds(text, "rank 0: Float [1]") && holds(text, "rank 1: Double [2]"));
  group.barrier();
}

RANKS_BODY("late") {
  auto group = ranks::group_from_env({.timeout_seconds = 2});
  ranks::Processes processes(group);
  if (rank == 1) std::this_thread::sleep_for(seconds(30));
  auto begin = steady_clock::now();
  auto text = message_of<fabric::CollectiveError>([&] { group.all_reduce(torch::ones({2}), ReduceOp::sum); });
  // A rank that came late to the call itself sees another one give up.
  RANK_CHECK(seconds_since(begin) > 0.2 && seconds_since(begin) < 20);
  RANK_CHECK(holds(text, "rank " + std::to_string(rank) + ": all_reduce"));
  if (text.find("gave up") == std::string::npos) RANK_CHECK(holds(text, "rank 1 did not come"));
  RANK_CHECK(holds(message_of<fabric::CollectiveError>([&] { group.barrier(); }), "failed before"));
  begin = steady_clock::now();
  group.shutdown();
  RANK_CHECK(seconds_since(begin) < 1.9);
  std::cout << "rank " + std::to_string(rank) + " saw it\n" << std::flush;
  std::this_thread::sleep_for(seconds(1));  // mpirun ends the job with the first of them
  if (rank == 0 && !std::getenv("OMPI_COMM_WORLD_RANK")) processes.end(1);
  _exit(3);
}

TEST_CASE("a late rank is a timeout that names it", "[collectives][failures]") {
  auto outcomes = ranks::run("late", {.world_size = 3});
  INFO(outcomes[0].output << outcomes[2].output);
  CHECK(outcomes[0].exit_code == 3);
  CHECK(outcomes[2].exit_code == 3);
  if (!ranks::has_mpirun()) return;
  auto job = ranks::run("late", ranks::mpirun(3))[0];
  INFO(job.output);
  CHECK(job.exit_code == 3);
  CHECK(job.output.find("rank 0 saw it") != std::string::npos);
  CHECK(job.output.find("rank 2 saw it") != std::string::npos);
}

RANKS_TEST("a rank that dies is named within the timeout", "[collectives][failures]", 3) {
  auto group = ranks::group_from_env({.timeout_seconds = 20});
  group.barrier();
  if (rank == 2) _exit(0);
  auto begin = steady_clock::now();
  auto text = message_of<fabric::CollectiveError>([&] {
    for (int turn = 0; turn < 3; ++turn) group.all_reduce(torch::ones({200000}), ReduceOp::sum);
  });
  RANK_CHECK(seconds_since(begin) < 18);
  // As who tells it: the connection that broke, or the place where the ranks meet.
  RANK_CHECK(holds(text, "all_reduce") &&
             (text.find("rank 2 is gone") != text.npos || holds(text, "rank 2 did not come")));
}

RANKS_TEST("the death of the rank that serves the store is an error too", "[collectives][failures]", 2) {
  auto group = ranks::group_from_env({.timeout_seconds = 20});
  group.barrier();
  if (rank == 0) _exit(0);
  auto begin = steady_clock::now();
  auto text = message_of<fabric::CollectiveError>([&] { group.barrier("late"); });
  RANK_CHECK(seconds_since(begin) < 18);
  RANK_CHECK(holds(text, "barrier") && holds(text, "rank 0"));
}

RANKS_BODY("stopped server") {
  auto group = ranks::group_from_env({.timeout_seconds = 15});
  ranks::Processes processes(group);
  if (rank == 0) {
    raise(SIGSTOP);
    _exit(0);
  }
  auto begin = steady_clock::now();
  auto text = message_of<fabric::CollectiveError>([&] { group.barrier("stuck"); });
  std::cout << "failed after " << seconds_since(begin) << " s: " << text << std::endl;
  // Each look at the store that lasted as long as the group's timeout would show here.
  RANK_CHECK(seconds_since(begin) < 28);
  processes.end(0);
  _exit(3);
}

TEST_CASE("a stopped rank that serves the store does not hang the others", "[collectives][failures]") {
  auto outcomes = ranks::run("stopped server", {.world_size = 2, .timeout_seconds = 60});
  INFO(outcomes[1].output);
  CHECK(outcomes[1].exit_code == 3);
}

RANKS_BODY("missing at the start") {
  if (rank == 1) {
    std::this_thread::sleep_for(seconds(4));
    _exit(0);
  }
  auto begin = steady_clock::now();
  auto text = message_of<fabric::TimeoutError>([&] { ranks::group_from_env({.timeout_seconds = 2}); });
  RANK_CHECK(seconds_since(begin) < 15);
  RANK_CHECK(holds(text, "joining the process group timed out") && holds(text, "Still missing: rank 1"));
  if (rank == 0) std::this_thread::sleep_for(seconds(3));  // it serves the store; rank 2 may have started later
}

TEST_CASE("a rank that never joins is named", "[collectives][failures]") {
  ranks::run_and_require("missing at the start", {.world_size = 3});
}

RANKS_BODY("no rank 0") {
  if (rank == 0) return;
  auto begin = steady_clock::now();
  auto text = message_of<fabric::CollectiveError>([&] { ranks::group_from_env({.timeout_seconds = 2}); });
  RANK_CHECK(seconds_since(begin) < 15);
  RANK_CHECK(holds(text, "rank 1: connecting to the job's store at 127.0.0.1:") && holds(text, "Rank 0 serves it"));
}

TEST_CASE("a rank 0 that never comes is named", "[collectives][failures]") {
  ranks::run_and_require("no rank 0", {.world_size = 2});
}

RANKS_TEST("freeing a group with work in flight waits for nobody", "[collectives][failures]", 2) {
  auto group = ranks::group_from_env({.backend = "gloo", .timeout_seconds = 60});
  ranks::Processes processes(group);
  if (rank == 1) {
    processes.outlive(0);
    _exit(0);
  }
  std::vector<Tensor> tensors{torch::ones({8})};
  auto work = group.c10d()->allreduce(tensors);
  auto begin = steady_clock::now();
  group.shutdown();
  work.reset();
  group = {};
  RANK_CHECK(seconds_since(begin) < 5);
}

// The timeout is one that came later than the group, and that its subgroups get as well.
RANKS_BODY("mpi message that nobody sends") {
  auto group = ranks::group_from_env({.timeout_seconds = 60});
  group.c10d()->getDefaultBackend()->setTimeout(std::chrono::milliseconds(1500));
  auto pair = group.subgroup({0, 1});
  if (rank == 1) {
    std::this_thread::sleep_for(seconds(30));
    _exit(0);
  }
  auto begin = steady_clock::now();
  auto tensor = torch::ones({2});
  auto text = message_of<fabric::TimeoutError>([&] { pair.recv_(tensor, 1); });
  RANK_CHECK(seconds_since(begin) > 1 && seconds_since(begin) < 10);
  RANK_CHECK(holds(text, "rank 0: recv timed out after 1.5") && holds(text, "rank 1 did not come"));
  std::cout << "rank 0 saw it" << std::endl;
}

TEST_CASE("over MPI a rank that waits for a message in vain names the other, and its end does not hang",
          "[collectives][failures][mpi]") {
  if (!ranks::has_mpirun()) {
    WARN("skipped: there is no mpirun");
    return;
  }
  auto begin = steady_clock::now();
  auto job = ranks::run("mpi message that nobody sends", ranks::mpirun(2))[0];
  INFO(job.output);
  CHECK(job.output.find("rank 0 saw it") != std::string::npos);
  CHECK(job.exit_code != 0);  // it ended without MPI_Finalize, which would wait for rank 1
  CHECK(seconds_since(begin) < 20);
}

// What runs in a thread outlives the group that it was started on; a group whose thread is idle takes it along.
RANKS_BODY("mpi group with a thread") {
  for (bool late : {false, true, true}) {
    auto group = ranks::group_from_env({.timeout_seconds = 30, .mpi_overlap_mb = 0.01});
    std::vector<Tensor> tensors{torch::full({100000}, rank + 1.0f)};
    if (late && rank == 1) std::this_thread::sleep_for(std::chrono::milliseconds(400));
    auto work = group.c10d()->allreduce(tensors);
    if (!late) work->wait();
    auto begin = steady_clock::now();
    group.shutdown();
    group = {};
    if (rank == 0) RANK_CHECK(seconds_since(begin) < 0.3);
    work->wait();
    RANK_CHECK(tensors[0].eq(3).all().item<bool>());
  }
}

TEST_CASE("a group over MPI is freed with its thread idle or at work", "[collectives][failures][mpi]") {
  if (!ranks::has_mpirun()) {
    WARN("skipped: there is no mpirun");
    return;
  }
  ranks::run_and_require("mpi group with a thread", ranks::mpirun(2));
}

RANKS_BODY("mpi rank dies") {
  auto group = ranks::group_from_env({.timeout_seconds = 60});
  group.barrier();
  if (rank == 1) _exit(7);
  for (;;) group.barrier();
}

RANKS_BODY("mpi rank never joins") {
  if (rank == 1) std::this_thread::sleep_for(seconds(60));
  ranks::group_from_env({.timeout_seconds = 2});
}

TEST_CASE("mpirun ends a job whose rank dies, and the watchdog one whose rank never joins",
          "[collectives][failures][mpi]") {
  if (!ranks::has_mpirun()) {
    WARN("skipped: there is no mpirun");
    return;
  }
  auto begin = steady_clock::now();
  CHECK(ranks::run("mpi rank dies", ranks::mpirun(2))[0].exit_code == 7);
  auto joined = ranks::run("mpi rank never joins", ranks::mpirun(2))[0];
  INFO(joined.output);
  CHECK(joined.exit_code == 86);
  CHECK(joined.output.find("rank 0: joining the MPI group timed out after 2") != std::string::npos);
  CHECK(seconds_since(begin) < 50);  // the ranks would sleep or spin for a minute
}

#include <unistd.h>

#include <chrono>
#include <iostream>

#include "strategies/ddp/ddp_test_support.h"

using namespace ddp_test;

namespace {

ranks::Options over_gloo() { return {.timeout_seconds = 60, .env = {{"FABRIC_TEST_BACKEND", "gloo"}}}; }

// Trains until the other rank fails it; returns the error's text. `misbehave` runs on rank 1 before its third step.
template <class Error, class Misbehave>
void train_with(int rank, double timeout, Misbehave misbehave) {
  auto group = join_group(timeout);
  ranks::Processes processes(group);
  auto strategy = make_ddp(group);
  Net net;
  auto model = wrap(strategy, net);
  auto x = torch::randn({4, 6}, at::kDouble);
  auto step = [&] { strategy->backward(model(x).sum(), nullptr); };
  step();
  step();
  if (rank == 1) return misbehave(processes);
  auto begin = std::chrono::steady_clock::now();
  auto text = error_of<Error>(step);
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  // Where ranks meet in shared memory the operation that waited throws the error itself.
  RANK_CHECK(contains(text, "rank 0: all-reduce of gradients") || contains(text, "rank 0: all_reduce"));
  RANK_CHECK(contains(text, "rank 1 did not come") || contains(text, "rank 1 is gone"));
  RANK_CHECK(seconds < timeout + 15);
  // It stays an error, at once.
  RANK_CHECK(!error_of<fabric::CollectiveError>([&] { model(x); }).empty());
  std::cout << "rank 0 saw it" << std::endl;
}

}  // namespace

RANKS_BODY("a rank dies in ddp") {
  train_with<fabric::CollectiveError>(rank, 20, [](auto&) { _exit(42); });
}
TEST_CASE("ddp reports a rank that died", "[ddp][failure]") {
  for (bool gloo : {true, false}) {
    auto begin = std::chrono::steady_clock::now();
    auto outcomes = ranks::run("a rank dies in ddp", gloo ? over_gloo() : ranks::Options{.timeout_seconds = 60});
    CHECK(outcomes[1].exit_code == 42);
    INFO(outcomes[0].output);
    CHECK(outcomes[0].exit_code == 0);
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(30));
  }
}

RANKS_BODY("a rank hangs in ddp") {
  train_with<fabric::TimeoutError>(rank, 2, [](auto& processes) { processes.outlive(0); });
}
TEST_CASE("ddp reports a rank that hangs when the timeout is over", "[ddp][failure]") {
  for (bool gloo : {true, false}) {
    auto outcomes = ranks::run("a rank hangs in ddp", gloo ? over_gloo() : ranks::Options{.timeout_seconds = 60});
    INFO(outcomes[0].output);
    CHECK(outcomes[0].exit_code == 0);
  }
  if (!ranks::has_mpirun()) return;
  // There the end of a rank whose operation failed is the end of the job.
  auto job = ranks::run("a rank hangs in ddp", ranks::mpirun(2))[0];
  INFO(job.output);
  CHECK(job.output.find("rank 0 saw it") != std::string::npos);
}

// The bucket is not checked, the barrier is: both ranks are told at once all the same, whether the bucket is reduced
// where the ranks meet or by MPI.
RANKS_BODY("a bucket meets a barrier") {
  auto group = join_group();
  auto x = torch::randn({4, 6}, at::kDouble);
  for (std::int64_t width : {8, 512}) {
    auto strategy = make_ddp(group, {.bucket_cap_mb = 10, .first_bucket_mb = 10});  // one bucket holds all
    Net net(at::kDouble, 6, width, width);
    auto model = wrap(strategy, net);
    // The first two passes agree on the layout of buckets.
    for (int step = 0; step < 2; ++step) strategy->backward(model(x).sum(), nullptr);
    group.barrier("start");
    auto begin = std::chrono::steady_clock::now();
    auto text = error_of<fabric::MismatchError>([&] {
      if (rank == 0)
        strategy->backward(model(x).sum(), nullptr);
      else
        group.barrier("save");
    });
    bool at_once = group.backend() != "gloo";
    RANK_CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(at_once ? 2 : 30));
    for (std::string part :
         {at_once ? "rank 0: ddp step 3 (all_reduce(sum) of " : "rank 0: ddp step 3 (", "rank 1: barrier(\"save\")"})
      if (!contains(text, part)) ranks::fail(__FILE__, __LINE__, part + " is missing in: " + text);
    // The model stopped half-way; the group did not.
    if (rank == 0) RANK_CHECK(!error_of<fabric::CollectiveError>([&] { model(x); }).empty());
    RANK_CHECK(group.all(true));
  }
}
TEST_CASE("a ddp step on one rank and a barrier on the other are an error on both, over Gloo", "[ddp][failure]") {
  ranks::run_and_require("a bucket meets a barrier", over_gloo());
}
TEST_CASE("a ddp step on one rank and a barrier on the other are an error on both, at once, in shared memory",
          "[ddp][failure][shm]") {
  ranks::run_and_require("a bucket meets a barrier", {.world_size = 2});
}
TEST_CASE("a ddp step on one rank and a barrier on the other are an error on both, at once, over MPI",
          "[ddp][failure][mpi]") {
  if (ranks::has_mpirun())
    ranks::run_and_require("a bucket meets a barrier", ranks::mpirun(2));
  else
    WARN("skipped: there is no mpirun");
}

RANKS_TEST("an exception in the user's own backward pass is passed on as it is", "[ddp][failure]", 2) {
  auto group = join_group();
  auto strategy = make_ddp(group);
  Net net;
  auto model = wrap(strategy, net);
  auto out = model(torch::randn({4, 6}, at::kDouble));
  out.register_hook([](const at::Tensor&) -> at::Tensor { throw std::domain_error("mine"); });
  RANK_CHECK(error_of<std::domain_error>([&] { strategy->backward(out.sum(), nullptr); }) == "mine");
}

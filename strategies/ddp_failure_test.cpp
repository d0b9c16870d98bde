#include <unistd.h>

#include <chrono>

#include "strategies/ddp_test_support.h"

using namespace ddp_test;

namespace {

// Trains until the other rank fails it; returns the error's text. `misbehave` runs on rank 1 before its third step.
template <class Error, class Misbehave>
void train_with(int rank, double timeout, Misbehave misbehave) {
  auto group = join_group(timeout);
  auto strategy = make_ddp(group);
  Net net;
  auto model = wrap(strategy, net);
  auto x = torch::randn({4, 6}, at::kDouble);
  auto step = [&] { strategy->backward(model(x).sum(), nullptr); };
  step();
  step();
  if (rank == 1) return misbehave();
  auto begin = std::chrono::steady_clock::now();
  auto text = error_of<Error>(step);
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  RANK_CHECK(contains(text, "rank 0") && contains(text, "all-reduce of gradients"));
  RANK_CHECK(seconds < timeout + 15);
  // It stays an error, at once.
  RANK_CHECK(!error_of<fabric::CollectiveError>([&] { model(x); }).empty());
}

}  // namespace

RANKS_BODY("a rank dies in ddp") {
  train_with<fabric::CollectiveError>(rank, 20, [] { _exit(42); });
}
TEST_CASE("ddp reports a rank that died", "[ddp][failure]") {
  auto begin = std::chrono::steady_clock::now();
  auto outcomes = ranks::run("a rank dies in ddp", {.world_size = 2, .timeout_seconds = 60});
  CHECK(outcomes[1].exit_code == 42);
  INFO(outcomes[0].output);
  CHECK(outcomes[0].exit_code == 0);
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(30));
}

RANKS_BODY("a rank hangs in ddp") {
  train_with<fabric::TimeoutError>(rank, 2, [] { sleep(6); });
}
TEST_CASE("ddp reports a rank that hangs when the timeout is over", "[ddp][failure]") {
  auto outcomes = ranks::run("a rank hangs in ddp", {.world_size = 2, .timeout_seconds = 60});
  INFO(outcomes[0].output);
  CHECK(outcomes[0].exit_code == 0);
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

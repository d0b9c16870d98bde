#include <fabric/helpers/metrics.h>

#include <torch/torch.h>

#include <cmath>

#include <fabric/fabric.h>

#include "tests/support/group_of_ranks.h"
#include "tests/support/ranks.h"

using Catch::Contains;
using fabric::Accuracy;
using fabric::MeanMetric;
using fabric::Peers;
using fabric::Value;

TEST_CASE("Peers of a process alone answer without communication", "[peers]") {
  Peers alone;
  CHECK(alone.rank() == 0);
  CHECK(alone.size() == 1);
  CHECK(alone.is_alone());
  CHECK(alone.any(true));
  CHECK_FALSE(alone.all(false));
  CHECK(alone.max(-3.5) == -3.5);
  CHECK(alone.mean(2) == 2);
  CHECK(alone.sum(2.0) == 2);
  CHECK(alone.broadcast(Value("text")).as_string() == "text");
  CHECK(alone.gather(Value(7)).at(0).as_int() == 7);
  alone.barrier("nobody to wait for");
}

TEST_CASE("Peers come from a Fabric or a group, implicitly", "[peers]") {
  fabric::Fabric one({.accelerator = "cpu", .devices = 1});
  CHECK(Peers(one).is_alone());
  CHECK(Peers(fabric::ProcessGroup()).is_alone());
  CHECK(Peers(fabric::ProcessGroup::single()).is_alone());
  fabric::Fabric not_launched({.accelerator = "cpu", .strategy = "ddp", .devices = 2});
  CHECK_THROWS_WITH(Peers(not_launched), Contains("fabric.launch()"));
}

RANKS_TEST("Peers of two ranks agree", "[peers]", 2) {
  Peers peers = ranks::group_from_env();
  RANK_CHECK(peers.rank() == rank && peers.size() == world_size);
  RANK_CHECK(peers.any(rank == 1) && !peers.any(false) && !peers.all(rank == 1) && peers.all(true));
  RANK_CHECK(peers.max(rank + 0.1) == 1.1);
  RANK_CHECK(peers.sum(rank + 0.5) == 2.0);
  RANK_CHECK(peers.mean(rank + 0.5) == 1.0);
  RANK_CHECK(std::isnan(peers.sum(rank == 1 ? std::nan("") : 1)));
  RANK_CHECK(peers.sum(std::vector<double>{1.0, double(rank)}) == std::vector<double>({2, 1}));
  RANK_CHECK(peers.broadcast(Value(rank), 1).as_int() == 1);
  auto all = peers.gather(Value(std::string(rank + 1, 'x')));
  RANK_CHECK(all.size() == 2 && all[0].as_string() == "x" && all[1].as_string() == "xx");
  peers.barrier("end");
}

TEST_CASE("A mean weighs its values", "[metrics]") {
  MeanMetric mean;
  mean.update(1.0, 3);
  mean.update(5.0);
  CHECK(mean.compute() == 2);
  mean.update(torch::tensor({2.0, 4.0}));
  CHECK(mean.compute() == Approx(14.0 / 6));
  mean.update(std::nan(""), 0);
  mean.update(torch::empty({0}));
  CHECK(mean.compute_and_reset() == Approx(14.0 / 6));
  CHECK_THROWS_WITH(mean.compute(), Contains("call update before compute"));
  CHECK_THROWS_WITH(mean.update(1.0, -1), Contains("0 or more"));
  CHECK_THROWS_WITH(mean.update(torch::ones(2), std::nan("")), Contains("0 or more"));
  mean.update(torch::ones(1, torch::requires_grad()));
  mean.update(std::nan(""));
  CHECK(std::isnan(mean.compute()));
}

TEST_CASE("Accuracy counts the largest score or the given class", "[metrics]") {
  Accuracy accuracy;
  auto target = torch::tensor({0, 1, 2, 1}, torch::kLong);
  accuracy.update(torch::tensor({{3., 1., 2.}, {0., 5., 1.}, {9., 1., 1.}, {1., 2., 0.}}), target);
  CHECK(accuracy.compute() == 0.75);
  accuracy.update(torch::tensor({0, 0}, torch::kInt), torch::tensor({1, 0}, torch::kInt));
  CHECK(accuracy.compute() == Approx(4.0 / 6));
  accuracy.update(torch::tensor({1, 1}), torch::tensor({-100, 0}, torch::kLong));
  CHECK(accuracy.compute() == Approx(4.0 / 7));
  accuracy.reset();
  // Every pixel is a sample: [N, C, H] against [N, H].
  accuracy.update(torch::eye(3).unsqueeze(0), torch::tensor({{0, 1, 1}}, torch::kLong));
  CHECK(accuracy.compute_and_reset() == Approx(2.0 / 3));
  CHECK_THROWS_WITH(accuracy.compute(), Contains("no sample"));
  CHECK_THROWS_WITH(accuracy.update(torch::rand({4}), target), Contains("scores"));
  CHECK_THROWS_WITH(accuracy.update(torch::rand({4, 3}), torch::rand({4})), Contains("integers"));
  CHECK_THROWS_WITH(accuracy.update(torch::rand({3, 3}), target), Contains("do not fit"));
}

TEST_CASE("Metrics go on from their state", "[metrics]") {
  MeanMetric mean;
  mean.update(3.0, 2);
  MeanMetric other;
  other.update(100.0);
  other.load_state_dict(mean.state_dict());
  other.update(6.0);
  CHECK(other.compute() == 4);
  Accuracy accuracy;
  accuracy.update(torch::tensor({1, 0}), torch::tensor({1, 1}));
  Accuracy next;
  next.load_state_dict(accuracy.state_dict());
  next.update(torch::tensor({1, 1}), torch::tensor({1, 1}));
  CHECK(next.compute() == 0.75);
}

RANKS_TEST("Metrics are those of all ranks, also with uneven batches and after a restart", "[metrics]", 2) {
  Peers peers = ranks::group_from_env();
  MeanMetric mean(peers);
  if (rank == 0) mean.update(torch::tensor({1.0, 2.0, 3.0}));
  if (rank == 1) mean.update(10.0);
  RANK_CHECK(mean.compute() == 4.0);
  MeanMetric restored(peers);
  restored.load_state_dict(mean.state_dict());
  RANK_CHECK(restored.compute() == 4.0);

  Accuracy accuracy(peers);
  if (rank == 0) accuracy.update(torch::tensor({0, 1, 1}), torch::tensor({0, 1, 0}));  // rank 1 has no batch
  RANK_CHECK(accuracy.compute() == 2.0 / 3);
  Accuracy again(peers);
  again.load_state_dict(accuracy.state_dict());
  RANK_CHECK(again.compute_and_reset() == 2.0 / 3);
  try {
    again.compute();
    RANK_CHECK(false);
  } catch (const fabric::MisuseError&) {
  }
}

// Making, splitting, sharing and freeing groups.
#include <torch/torch.h>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <fabric/base/plugin_library_internal.h>
#include <fabric/plugins/collectives/process_group.h>

#include "plugins/collectives/mpi/mpi_library.h"
#include "tests/support/group_of_ranks.h"

using at::Tensor;
using fabric::ProcessGroup;
using fabric::ReduceOp;

ALL_BACKENDS_TEST("groups follow one another and part", "[collectives][groups]", 3) {
  for (int turn = 0; turn < 3; ++turn) {
    auto group = ranks::group_from_env();
    RANK_CHECK(group.all_reduce(torch::ones({2}), ReduceOp::sum)[0].item<float>() == 3);
    auto copy = group;
    copy.shutdown();
    copy.shutdown();
    bool refused = false;
    try {
      group.barrier();
    } catch (const fabric::MisuseError&) {
      refused = true;
    }
    RANK_CHECK(refused);
  }
  auto first = ranks::group_from_env(), second = ranks::group_from_env();
  RANK_CHECK(second.all_reduce(torch::ones({1}), ReduceOp::sum).item<float>() == 3);
  if (rank == 0) first.shutdown();
  second.barrier();

  auto pair = second.subgroup({2, 0}, "ends");
  RANK_CHECK(bool(pair) == (rank != 1) && pair.is_set() && pair.size() == 2);
  auto alone = second.subgroup({1});
  // A rank outside is told so; its call is none of all ranks.
  auto& foreign = rank == 1 ? pair : alone;
  auto outside = [&](auto&& call) {
    try {
      call();
    } catch (const fabric::MisuseError& error) {
      auto text = std::string(rank == 1 ? "this rank is not in the group 'ends' of ranks 0, 2"
                                        : "this rank is not in the group of rank 1");
      return std::string(error.what()).find(text) != std::string::npos;
    }
    return false;
  };
  auto one = torch::ones({1});
  RANK_CHECK(outside([&] { foreign.rank(); }) && outside([&] { foreign.barrier(); }));
  RANK_CHECK(outside([&] { foreign.all_reduce(one, ReduceOp::sum); }) && outside([&] { foreign.subgroup({0}); }));
  RANK_CHECK(outside([&] { foreign.broadcast_value(1, 0); }) && outside([&] { foreign.c10d(); }));
  auto copy = foreign;
  copy.shutdown();
  if (pair) {
    RANK_CHECK(pair.size() == 2 && pair.rank() == (rank == 0 ? 0 : 1));
    RANK_CHECK(pair.all_reduce(torch::full({1}, rank + 1.0), ReduceOp::sum).item<double>() == 4);
    auto again = pair.subgroup({0, 1});
    RANK_CHECK(again.all_gather_value(rank)[1].as_int() == 2);
  } else {
    RANK_CHECK(alone.size() == 1 && alone.all_reduce(torch::ones({1}), ReduceOp::sum).item<float>() == 1);
  }
  second.barrier("end");
}

TEST_CASE("a single group returns its input and has LibTorch's object too", "[collectives][groups]") {
  auto group = ProcessGroup::single();
  CHECK(group.backend() == "single");
  CHECK(group.size() == 1);
  CHECK(group.rank() == 0);
  auto tensor = torch::full({2}, 3.0);
  group.all_reduce_(tensor, ReduceOp::mean);
  CHECK(tensor.sum().item<double>() == 6);
  CHECK(group.all_gather(tensor).size() == 1);
  CHECK(group.gather(tensor, 0).size() == 1);
  CHECK(torch::equal(group.scatter({tensor}, tensor, 0), tensor));
  CHECK(torch::equal(group.reduce_scatter({tensor}, ReduceOp::sum), tensor));
  CHECK(torch::equal(group.all_to_all({tensor})[0], tensor));
  CHECK(torch::equal(group.reduce(tensor, ReduceOp::sum, 0), tensor));
  CHECK(group.broadcast_value("x", 0).as_string() == "x");
  CHECK(group.all_gather_value(4)[0].as_int() == 4);
  CHECK(group.all(true));
  CHECK_FALSE(group.any(false));
  group.barrier();
  CHECK(group.subgroup({0}).size() == 1);
  std::vector<Tensor> tensors{torch::ones({2})};
  group.c10d()->allreduce(tensors)->wait();
  CHECK(tensors[0].sum().item<float>() == 2);
  CHECK_THROWS_AS(group.send(tensor, 0), fabric::MisuseError);
  group.shutdown();
  CHECK_THROWS_AS(group.barrier(), fabric::MisuseError);
}

TEST_CASE("a world of one needs no port and no peer", "[collectives][groups]") {
  auto automatic = ProcessGroup::create({}, {}, c10::kCPU);
  CHECK(automatic.backend() == "single");
  auto gloo = ProcessGroup::create({.backend = "gloo"}, {}, c10::kCPU);
  CHECK(gloo.backend() == "gloo");
  CHECK(gloo.all_reduce(torch::ones({1}), ReduceOp::sum).item<float>() == 1);
}

TEST_CASE("wrong settings and arguments are refused with what to write instead", "[collectives][groups]") {
  fabric::RankInfo two;
  two.world_size = 2;
  CHECK_THROWS_WITH(ProcessGroup::create({.backend = "glo"}, two, c10::kCPU), Catch::Contains("did you mean 'gloo'"));
  CHECK_THROWS_WITH(ProcessGroup::create({.backend = "gloo"}, two, c10::kCPU), Catch::Contains("MASTER_PORT"));
  CHECK_THROWS_AS(ProcessGroup::create({.timeout_seconds = 0}, two, c10::kCPU), fabric::ConfigError);
  two.rank = 2;
  CHECK_THROWS_AS(ProcessGroup::create({}, two, c10::kCPU), fabric::ConfigError);
  CHECK(fabric::parse_reduce_op("avg") == ReduceOp::mean);
  CHECK(fabric::parse_reduce_op("prod") == ReduceOp::product);
  CHECK_THROWS_WITH(fabric::parse_reduce_op("summ"),
                    Catch::Contains("did you mean 'sum'") && Catch::Contains("product"));
  CHECK_THROWS_AS(ProcessGroup().rank(), fabric::MisuseError);
  CHECK_FALSE(ProcessGroup().is_set());
  CHECK_FALSE(static_cast<bool>(ProcessGroup()));
  CHECK_THROWS_AS(ProcessGroup().barrier(), fabric::MisuseError);
  CHECK_THROWS_AS(ProcessGroup::wrap(nullptr, {}), fabric::MisuseError);
  CHECK_THROWS_AS(ProcessGroup::from_mpi_comm({}, nullptr), fabric::MisuseError);
  auto group = ProcessGroup::single();
  Tensor undefined;
  CHECK_THROWS_AS(group.all_reduce_(undefined, ReduceOp::sum), fabric::MisuseError);
  CHECK_THROWS_AS(group.all_gather(torch::ones({2}).to_sparse()), fabric::MisuseError);
  CHECK_THROWS_WITH(group.broadcast_value(1, 3), Catch::Contains("ranks 0 to 0"));
  CHECK_THROWS_AS(group.subgroup({0, 0}), fabric::MisuseError);
  CHECK_THROWS_AS(group.reduce_scatter({}, ReduceOp::sum), fabric::MisuseError);
}

TEST_CASE("nccl without a GPU says what is missing", "[collectives][groups]") {
  if (torch::cuda::is_available()) return;
  CHECK_THROWS_AS(ProcessGroup::create({.backend = "nccl"}, {}, c10::Device(c10::kCUDA, 0)), fabric::UnavailableError);
  CHECK_THROWS_WITH(fabric::load_plugin_symbol("torchfabric_none", "f", fabric::kPluginAbi, "Build it"),
                    Catch::Contains("cannot load libtorchfabric_none.so") && Catch::Contains("Build it"));
}

// mpirun names no port. Ranks that need one are told over MPI, and groups that follow meet there as well.
RANKS_BODY("gloo under mpirun") {
  for (int turn = 0; turn < 3; ++turn) {
    auto group = ranks::group_from_env({.backend = "gloo", .timeout_seconds = 30});
    RANK_CHECK(group.backend() == "gloo");
    RANK_CHECK(group.all_reduce(torch::ones({1}), ReduceOp::sum).item<float>() == 2);
    RANK_CHECK(group.all_gather_value(rank)[1].as_int() == 1);
  }
}

TEST_CASE("ranks of mpirun that need a port find one", "[collectives][groups][mpi]") {
  if (!ranks::has_mpirun()) {
    WARN("skipped: there is no mpirun");
    return;
  }
  ranks::run_and_require("gloo under mpirun", ranks::mpirun(2));
}

// The limit of MPI's int counts, brought down so that a test can reach it.
RANKS_BODY("mpi in pieces") {
  using namespace fabric::collectives;
  auto make = reinterpret_cast<MakeMpi>(fabric::load_plugin_symbol("torchfabric_mpi", kMakeMpi, fabric::kPluginAbi));
  std::shared_ptr<fabric::CollectiveBackend> mpi;
  make({.timeout = std::chrono::seconds(30), .most_items = 7}, mpi);
  auto group = c10::make_intrusive<c10d::ProcessGroup>(nullptr, rank, world_size);
  group->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::CUSTOM, mpi->c10d());
  group->setDefaultBackend(c10d::ProcessGroup::BackendType::CUSTOM);
  auto wrapped = ProcessGroup::wrap(group, {.timeout_seconds = 30});
  auto base = torch::arange(23, torch::kDouble);
  RANK_CHECK(torch::equal(wrapped.all_reduce(base + rank, ReduceOp::sum), base * 2 + 1));
  auto copy = base + rank * 100;
  wrapped.broadcast_(copy, 1);
  RANK_CHECK(torch::equal(copy, base + 100));
  RANK_CHECK(torch::equal(wrapped.all_gather(base + rank)[1], base + 1));
  auto gathered = wrapped.gather(base + rank, 0);
  if (rank == 0) RANK_CHECK(torch::equal(gathered[1], base + 1));
  std::vector<Tensor> parts;
  if (rank == 0) parts = {base, base + 1};
  RANK_CHECK(torch::equal(wrapped.scatter(parts, base, 0), base + rank));
  RANK_CHECK(torch::equal(wrapped.reduce_scatter({base, base + 1}, ReduceOp::mean), base + rank));
  RANK_CHECK(torch::equal(wrapped.all_to_all({base + rank, base + 10 + rank})[1 - rank], base + 10 * rank + 1 - rank));
  auto reduced = wrapped.reduce(base + rank, ReduceOp::max, 1);
  if (rank == 1) RANK_CHECK(torch::equal(reduced, base + 1));
  auto token = torch::zeros({23}, torch::kDouble);
  if (rank == 0) wrapped.send(base, 1);
  if (rank == 1) wrapped.recv_(token, 0);
  if (rank == 1) RANK_CHECK(torch::equal(token, base));
}

TEST_CASE("operations larger than MPI's counts go in pieces", "[collectives][groups][mpi]") {
  if (!ranks::has_mpirun()) {
    WARN("skipped: there is no mpirun");
    return;
  }
  ranks::run_and_require("mpi in pieces", ranks::mpirun(2));
}

#ifdef FABRIC_EMBEDDED_MPI
TEST_CASE("a program that owns MPI lends its communicator", "[collectives][groups][mpi]") {
  if (!ranks::has_mpirun()) {
    WARN("skipped: there is no mpirun");
    return;
  }
  auto outcome = ranks::run_program({FABRIC_EMBEDDED_MPI}, ranks::mpirun(3))[0];
  INFO(outcome.output);
  CHECK(outcome.exit_code == 0);
}
#endif

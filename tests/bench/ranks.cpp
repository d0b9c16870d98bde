// Two ranks under mpirun: ddp steps over MPI, Gloo and shared memory against one process, and all_reduce against plain
// MPI. All groups live in the same processes, so that every pair is measured in one run.

#include <mpi.h>
#include <torch/torch.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <fabric/fabric.h>

#include "examples/transformer.h"
#include "tests/bench/bench.h"

namespace {

fabric::Fabric::Config over(const std::string& backend) {
  fabric::Choice strategy("ddp");
  strategy.params["process_group"] = fabric::Tree::Map{{"backend", backend}};
  return {.accelerator = "cpu", .strategy = strategy};
}

struct Mlp {
  static torch::nn::Sequential make() {
    return torch::nn::Sequential(torch::nn::Linear(32, 64), torch::nn::ReLU(), torch::nn::Linear(64, 10));
  }
  torch::Tensor x = torch::randn({32, 32}), y = torch::randint(0, 10, {32});
  torch::Tensor loss(const torch::Tensor& out) const { return torch::nn::functional::cross_entropy(out, y); }
};

struct Text {
  static Transformer make() { return Transformer(TransformerConfig{}); }
  torch::Tensor x = torch::randint(0, 128, {8, 64}), y = torch::randint(0, 128, {8, 64});
  torch::Tensor loss(const torch::Tensor& out) const {
    return torch::nn::functional::cross_entropy(out.flatten(0, 1), y.flatten());
  }
};

struct Steps {
  double mpi = 1e300, gloo = 1e300, shm = 1e300, alone = 1e300;
};

// Every phase starts at a barrier, so that both cores are busy with the same thing on all sides.
template <class Load>
Steps measure(fabric::Fabric& mpi, fabric::Fabric& gloo, fabric::Fabric& shm, int count, int rounds) {
  Load batch;
  auto make = [](auto parameters) { return torch::optim::SGD(parameters, 0.01); };
  auto [mpi_model, mpi_optimizer] = mpi.setup(Load::make(), make);
  auto [gloo_model, gloo_optimizer] = gloo.setup(Load::make(), make);
  auto [shm_model, shm_optimizer] = shm.setup(Load::make(), make);
  auto bare = Load::make();
  auto bare_optimizer = make(bare->parameters());
  auto wrapped_step = [&](auto& fabric, auto& model, auto& optimizer) {
    optimizer.zero_grad();
    fabric.backward(batch.loss(model(batch.x)));
    optimizer.step();
  };
  auto mpi_step = [&, &m = mpi_model, &o = mpi_optimizer] { wrapped_step(mpi, m, o); };
  auto gloo_step = [&, &m = gloo_model, &o = gloo_optimizer] { wrapped_step(gloo, m, o); };
  auto shm_step = [&, &m = shm_model, &o = shm_optimizer] { wrapped_step(shm, m, o); };
  auto bare_step = [&] {
    bare_optimizer.zero_grad();
    batch.loss(bare->forward(batch.x)).backward();
    bare_optimizer.step();
  };
  Steps best;
  auto phase = [&](double& slot, auto& step) {
    mpi.barrier();
    slot = std::min(slot, bench::time_us(step, count));
  };
  for (int round = -1; round < rounds; ++round) {
    if (round == 0) best = Steps();
    phase(best.alone, bare_step);
    phase(best.mpi, mpi_step);
    phase(best.gloo, gloo_step);
    phase(best.shm, shm_step);
  }
  return best;
}

struct Bars {
  double us = 0, small = 0, large = 0;
};

// Through Fabric, over `name`, against the plain call; `shared`: the tensors lie in the group's memory.
void report_all_reduce(fabric::Fabric& fabric, const std::string& name, const Bars& bars, bool shared = false) {
  auto group = fabric.strategy()->process_group();
  for (int64_t count : {int64_t{1}, int64_t{1} << 18, int64_t{1} << 24}) {
    if (shared && count == 1) continue;  // goes another way
    auto tensor = shared ? group.empty({count}).fill_(1) : torch::ones({count});
    std::vector<float> raw(static_cast<std::size_t>(count), 1.0f);
    auto ours = [&] { fabric.all_reduce_(tensor, fabric::ReduceOp::max); };
    auto plain = [&] {
      MPI_Allreduce(MPI_IN_PLACE, raw.data(), static_cast<int>(count), MPI_FLOAT, MPI_MAX, MPI_COMM_WORLD);
    };
    auto pair = bench::compare(ours, plain, count == 1 ? 20000 : count < (1 << 20) ? 500 : 8, 9);
    if (fabric.global_rank() != 0) continue;
    auto what = "all_reduce over " + name;
    if (count == 1)
      bench::figure(what + ", 4 bytes: more than MPI (" + std::to_string(pair.theirs) + " us)", pair.ours - pair.theirs,
                    "us", bars.us);
    else if (count < (1 << 20))
      bench::row(what + ", 1 MiB / MPI_Allreduce", pair.ours, pair.theirs, "us", bars.small);
    else
      bench::row(what + ", 64 MiB / MPI_Allreduce", pair.ours / 1e3, pair.theirs / 1e3, "ms", bars.large);
  }
}

// 64 MiB in all, by LibTorch's object, against MPI's calls.
void report_others(fabric::Fabric& shm, bool shared, double bar) {
  constexpr int64_t kAll = 1 << 24, kEach = kAll / 2;
  auto group = shm.strategy()->process_group();
  auto c10d = group.c10d()->getBackend(c10::kCPU);
  auto make = [&](int64_t count) { return shared ? group.empty({count}).fill_(1) : torch::ones({count}); };
  auto part = make(kEach), all = make(kAll);
  std::vector<float> raw_part(kEach, 1.0f), raw_all(kAll, 1.0f);
  std::vector<torch::Tensor> one{all};
  auto report = [&](const std::string& what, auto&& ours, auto&& plain) {
    auto pair = bench::compare(ours, plain, 8, 7);
    if (shm.global_rank() == 0)
      bench::row(what + ", 64 MiB, " + (shared ? "in the group's memory" : "private") + " / MPI", pair.ours / 1e3,
                 pair.theirs / 1e3, "ms", bar);
  };
  report(
      "all_gather", [&] { c10d->_allgather_base(all, part)->wait(); },
      [&] { MPI_Allgather(raw_part.data(), kEach, MPI_FLOAT, raw_all.data(), kEach, MPI_FLOAT, MPI_COMM_WORLD); });
  report(
      "reduce_scatter", [&] { c10d->_reduce_scatter_base(part, all)->wait(); },
      [&] { MPI_Reduce_scatter_block(raw_all.data(), raw_part.data(), kEach, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD); });
  report(
      "broadcast", [&] { c10d->broadcast(one)->wait(); },
      [&] { MPI_Bcast(raw_all.data(), kAll, MPI_FLOAT, 0, MPI_COMM_WORLD); });
}

// What an all-reduce of two ranks in place cannot do without: each reads its half of both tensors and writes both.
void report_traffic(fabric::Fabric& shm) {
  constexpr int64_t kCount = 1 << 24, kHalf = kCount / 2;
  auto group = shm.strategy()->process_group();
  auto tensor = group.empty({kCount}).fill_(1);
  auto a = torch::ones({kHalf}), b = torch::ones({kHalf});
  auto loop = [&] {
    shm.barrier();
    auto *to = a.mutable_data_ptr<float>(), *other = b.mutable_data_ptr<float>();
    for (int64_t i = 0; i < kHalf; ++i) to[i] = other[i] = 0.5f * (to[i] + other[i]);
    shm.barrier();
  };
  auto pair = bench::compare([&] { shm.all_reduce_(tensor, fabric::ReduceOp::max); }, loop, 8, 9);
  if (shm.global_rank() == 0)
    bench::row("all_reduce, 64 MiB, in the group's memory / its traffic", pair.ours / 1e3, pair.theirs / 1e3, "ms",
               1.3);
}

void report_gloo(fabric::Fabric& shm, fabric::Fabric& gloo) {
  auto tensor = torch::ones({1});
  auto pair = bench::compare([&] { shm.all_reduce_(tensor, fabric::ReduceOp::max); },
                             [&] { gloo.all_reduce_(tensor, fabric::ReduceOp::max); }, 300, 9);
  if (shm.global_rank() == 0) bench::row("all_reduce, 4 bytes / Gloo", pair.ours, pair.theirs, "us", 0.02);
}

// From nothing to the end of a group's first barrier.
void report_first_barrier(fabric::Fabric& shm) {
  fabric::RankInfo ranks;
  ranks.rank = ranks.local_rank = shm.global_rank();
  ranks.world_size = ranks.local_world_size = shm.world_size();
  ranks.main_address = "127.0.0.1";
  ranks.main_port = std::stoi(std::getenv("MASTER_PORT"));
  auto meet = [&](const char* backend) {
    shm.barrier();
    fabric::ProcessGroup::create({.backend = backend}, ranks, c10::kCPU).barrier();
  };
  auto pair = bench::compare([&] { meet("shm"); }, [&] { meet("gloo"); }, 1, 9);
  if (shm.global_rank() == 0)
    bench::row("first barrier of two ranks / Gloo", pair.ours / 1e3, pair.theirs / 1e3, "ms", 1.0);
}

// More ranks than processors: who waits has to stand back.
int report_crowd() {
  fabric::Fabric mpi(over("mpi")), gloo(over("gloo")), shm(over("shm"));
  mpi.launch();
  gloo.launch();
  shm.launch();
  for (int64_t count : {int64_t{1}, int64_t{1} << 16, int64_t{1} << 20}) {
    auto tensor = torch::ones({count});
    auto time = [&](fabric::Fabric& fabric) {
      double best = 1e300;
      for (int round = 0; round < 5; ++round) {
        gloo.barrier();
        best = std::min(best, bench::time_us([&] { fabric.all_reduce_(tensor, fabric::ReduceOp::max); }, 30));
      }
      return best;
    };
    double over_mpi = time(mpi), over_gloo = time(gloo), over_shm = time(shm);
    if (mpi.global_rank() != 0) continue;
    std::printf("MPI %.0f us, Gloo %.0f us\n", over_mpi, over_gloo);
    bench::row(std::to_string(mpi.world_size()) + " ranks, all_reduce of " + std::to_string(4 * count) +
                   " bytes / the better of MPI and Gloo",
               over_shm, std::min(over_mpi, over_gloo), "us", 3.0);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  at::set_num_threads(1);
  torch::manual_seed(0);
  if (argc > 1 && std::string(argv[1]) == "crowd") return report_crowd();
  fabric::Fabric mpi(over("mpi")), gloo(over("gloo")), shm(over("shm"));
  mpi.launch();
  gloo.launch();
  shm.launch();
  if (mpi.global_rank() == 0) bench::header();
  report_all_reduce(mpi, "MPI", {3.0, 1.15, 1.15});
  report_all_reduce(shm, "shared memory", {1.5, 0.9, 1.0});
  report_all_reduce(shm, "shared memory, in the group's memory", {0, 0.25, 0.2}, true);
  for (bool shared : {false, true}) report_others(shm, shared, shared ? 0.3 : 1.0);
  report_traffic(shm);
  report_gloo(shm, gloo);
  report_first_barrier(shm);
  auto mlp = measure<Mlp>(mpi, gloo, shm, 500, 9);
  auto text = measure<Text>(mpi, gloo, shm, 2, 20);
  if (mpi.global_rank() != 0) return 0;
  bench::row("ddp step, MLP, MPI / Gloo", mlp.mpi, mlp.gloo, "us", 0.20);
  bench::row("ddp step, MLP, MPI / one process", mlp.mpi, mlp.alone, "us", 1.8);
  bench::row("ddp step, MLP, shared memory / one process", mlp.shm, mlp.alone, "us", 1.3);
  bench::row("ddp step, transformer, Gloo / one process", text.gloo / 1e3, text.alone / 1e3, "ms", 1.15);
  bench::row("ddp step, transformer, MPI / one process", text.mpi / 1e3, text.alone / 1e3, "ms", 1.15);
  bench::row("ddp step, transformer, shared memory / one process", text.shm / 1e3, text.alone / 1e3, "ms", 1.03);
}

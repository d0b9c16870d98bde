// What fsdp keeps per rank, moves per step and costs: a transformer of 50 M parameters with AdamW, against one process,
// against ddp on the same group, and against what the arithmetic says. As bench_sharding --figures: only our side of
// what the Python peer does, milliseconds per step and MB per rank.

#include <malloc.h>
#include <torch/torch.h>

#include <cmath>

#include <fabric/fabric.h>
#include <fabric/optim/fused.h>

#include "examples/transformer.h"
#include "tests/bench/bench.h"
#include "tests/bench/counted_backend.h"
#include "tests/bench/rank_jobs.h"

namespace {

using fabric::Tree;

constexpr std::int64_t kBatch = 2, kContext = 64;  // of each rank
const TransformerConfig kModel{.width = 512, .heads = 8, .layers = 16};

Transformer make_model() {
  torch::manual_seed(1);
  return Transformer(kModel);
}
const auto kAdamW = [](auto parameters) { return fabric::optim::AdamW(parameters, 1e-3); };

// The raw loop's and the wrapped one's step.
struct Batch {
  explicit Batch(std::int64_t rows)
      : x(torch::randint(0, 128, {rows, kContext})), y(torch::randint(0, 128, {rows, kContext})) {}
  at::Tensor loss(const at::Tensor& logits) const {
    return torch::nn::functional::cross_entropy(logits.flatten(0, 1), y.flatten());
  }
  template <class Model, class Optimizer>
  void step(fabric::Fabric& fabric, Model& model, Optimizer& optimizer) const {
    optimizer.zero_grad();
    fabric.backward(loss(model(x)));
    optimizer.step();
  }
  at::Tensor x, y;
};

fabric::Fabric::Config over(const std::string& strategy, int ranks, const std::string& backend,
                            Tree::Map settings = {}) {
  if (!backend.empty()) settings["process_group"] = Tree::Map{{"backend", backend}};
  return {.accelerator = "cpu", .strategy = fabric::Choice(strategy, settings), .devices = ranks};
}

// What LibTorch itself takes once it runs: its pages, its threads' stacks, the autograd engine.
double bytes_of_libtorch() {
  torch::nn::Linear warm(16, 16);
  torch::optim::AdamW optimizer(warm->parameters(), 1e-3);
  warm->forward(torch::ones({4, 16})).sum().backward();
  optimizer.step();
  return bench::proportional_bytes();
}

struct Memory {
  double peak, live;  // bytes above LibTorch's own: at most in a step; after it, with nothing free in the heap
  double moved;       // elements per step
  double parameters;  // elements of the whole model
  double padded;      // with the padding of the pieces
  double last_unit;   // elements of the unit that stays whole between forward and backward
};

Memory memory_of(const fabric::Fabric::Config& config, std::int64_t rows) {
  at::set_num_threads(1);
  bench::register_counted();
  const double before = bytes_of_libtorch();
  fabric::Fabric fabric(config);
  fabric.launch();
  auto made = make_model();
  Memory found{};
  const int ranks = fabric.world_size();
  for (const auto& parameter : made->parameters()) {
    found.parameters += static_cast<double>(parameter.numel());
    const auto rows_each = (parameter.size(0) + ranks - 1) / ranks;
    found.padded += static_cast<double>(rows_each * ranks * (parameter.numel() / parameter.size(0)));
  }
  for (const auto& parameter : made->head->parameters()) found.last_unit += static_cast<double>(parameter.numel());
  auto [model, optimizer] = fabric.setup(made, kAdamW);
  made = Transformer(nullptr);
  Batch batch(rows);
  batch.step(fabric, model, optimizer);
  malloc_trim(0);
  for (int i = 0; i < 2; ++i) batch.step(fabric, model, optimizer);
  bench::moved() = {};
  batch.step(fabric, model, optimizer);
  found.moved = bench::moved().all();
  {
    bench::PeakMemory peak;
    for (int i = 0; i < 4; ++i) batch.step(fabric, model, optimizer);
    found.peak = peak.bytes() - before;
  }
  malloc_trim(0);
  found.live = bench::proportional_bytes() - before;
  fabric.barrier();
  return found;
}

Memory memory_in_ranks(int ranks, const fabric::Fabric::Config& config, std::int64_t rows) {
  bench::Left<Memory> left;
  bench::in_ranks(ranks, [&](int rank) { left.of(rank) = memory_of(config, rows); });
  Memory most = left.of(0);
  for (int rank = 1; rank < ranks; ++rank) {
    most.peak = std::max(most.peak, left.of(rank).peak);
    most.live = std::max(most.live, left.of(rank).live);
  }
  return most;
}

void memory_rows() {
  auto alone = memory_in_ranks(1, over("single_device", 1, ""), 2 * kBatch);
  auto report = [&](const std::string& name, const Memory& got, double bar) {
    bench::row(name + ", 2 ranks: peak per rank / one process", got.peak / 1e6, alone.peak / 1e6, "MB", bar);
  };
  auto full = memory_in_ranks(2, over("fsdp", 2, "gloo"), kBatch);
  report("FULL_SHARD, Gloo", full, 0.56);
  report("FULL_SHARD, shared memory", memory_in_ranks(2, over("fsdp", 2, "shm"), kBatch), 0.56);
}

// Model state: parameters, gradients and AdamW's two moments, 4 bytes each.
void arithmetic_rows() {
  struct Mode {
    const char* name;
    Tree::Map settings;
    double parts;                        // the state is cut into so many, by rank; 0: by all
    double gathers, reductions, across;  // of the model, per step
  };
  const std::vector<Mode> modes = {{"FULL_SHARD", {}, 0, 2, 1, 0},
                                   {"SHARD_GRAD_OP", {}, 0, 1, 1, 0},
                                   {"NO_SHARD", {}, 1, 0, 0, 2},
                                   {"HYBRID_SHARD", {{"device_mesh", Tree::List{2, 2}}}, 2, 2, 1, 2}};
  for (int ranks : {2, 4})
    for (const auto& mode : modes) {
      if (ranks == 2 && std::string(mode.name) == "HYBRID_SHARD") continue;
      auto settings = mode.settings;
      settings["sharding_strategy"] = mode.name;
      auto got = memory_in_ranks(ranks, over("fsdp", ranks, "counted", settings), kBatch / 2);
      const double parts = mode.parts == 0 ? ranks : mode.parts;
      const auto what = std::string(mode.name) + ", " + std::to_string(ranks) + " ranks: ";
      bench::row(what + "live MB / 16 bytes per element of its part", got.live / 1e6, 16 * got.padded / parts / 1e6,
                 "MB", 1.02);
      // Of the gathers one is spared: the last unit of a forward pass is the first of the backward pass.
      const double inside = (parts - 1) / parts, across = parts == ranks ? 0 : (ranks / parts - 1) / (ranks / parts);
      double expected =
          inside * (mode.gathers + mode.reductions) * got.padded + across * mode.across * got.padded / parts;
      if (mode.gathers == 2) expected -= inside * got.last_unit;
      bench::row(what + "elements moved per step / expected", got.moved / 1e6, expected / 1e6, "M", 1.0001);
    }
}

struct Steps {
  double ours, ddp;  // milliseconds
  double faults, ddp_faults, allocations, ddp_allocations;
};

Steps steps_over(const std::string& backend, int rounds) {
  bench::Left<Steps> left;
  bench::in_ranks(2, [&](int rank) {
    at::set_num_threads(1);
    fabric::Fabric ours(over("fsdp", 2, backend)), theirs(over("ddp", 2, backend));
    ours.launch();
    theirs.launch();
    auto [model, optimizer] = ours.setup(make_model(), kAdamW);
    auto [ddp_model, ddp_optimizer] = theirs.setup(make_model(), kAdamW);
    Batch batch(kBatch);
    auto our_step = [&, &m = model, &o = optimizer] { batch.step(ours, m, o); };
    auto ddp_step = [&, &m = ddp_model, &o = ddp_optimizer] { batch.step(theirs, m, o); };
    Steps best{1e300, 1e300, 1e300, 1e300, 1e300, 1e300};
    auto phase = [&](auto& step, double& time, double& faults, double& allocations) {
      ours.barrier();
      const auto before = bench::page_faults();
      const auto calls = bench::allocations([&] { time = std::min(time, bench::time_us(step, 1) / 1e3); });
      faults = std::min(faults, static_cast<double>(bench::page_faults() - before));
      allocations = std::min(allocations, static_cast<double>(calls));
    };
    for (int round = -2; round < rounds; ++round) {
      if (round == 0) best = {1e300, 1e300, 1e300, 1e300, 1e300, 1e300};
      phase(ddp_step, best.ddp, best.ddp_faults, best.ddp_allocations);
      phase(our_step, best.ours, best.faults, best.allocations);
    }
    left.of(rank) = best;
    ours.barrier();
  });
  return left.of(0);
}

void step_rows(const std::string& backend, const std::string& name, double bar) {
  auto best = steps_over(backend, 10);
  bench::row("step, fsdp / ddp over " + name, best.ours, best.ddp, "ms", bar);
  bench::row("page faults per step, fsdp / ddp over " + name, best.faults, std::max(best.ddp_faults, 1.0), "", 1);
  bench::row("allocations per step, fsdp / ddp over " + name, best.allocations / 1e3, best.ddp_allocations / 1e3, "k",
             1);
}

void one_rank_row() {
  bench::in_ranks(1, [](int) {
    at::set_num_threads(1);
    fabric::Fabric fabric(over("fsdp", 1, ""));
    fabric.launch();
    auto net = make_model();
    Batch batch(kBatch);
    auto raw = kAdamW(net->parameters());
    auto raw_step = [&] {
      raw.zero_grad();
      batch.loss(net->forward(batch.x)).backward();
      raw.step();
    };
    raw_step();
    auto [model, optimizer] = fabric.setup(net, kAdamW);
    auto step = [&, &m = model, &o = optimizer] { batch.step(fabric, m, o); };
    auto pair = bench::compare(step, raw_step, 1, 8);
    bench::row("step, fsdp on one rank / raw loop", pair.ours / 1e3, pair.theirs / 1e3, "ms", 1.03);
  });
}

// Each of four ranks may have 0.4 of the model's state beside LibTorch's own: one process could not even begin.
void limited_row() {
  bench::Left<double> left;
  bench::in_ranks(4, [&](int rank) {
    at::set_num_threads(1);
    fabric::Fabric fabric(over("fsdp", 4, "gloo"));
    fabric.launch();
    bytes_of_libtorch();
    {  // the group's threads, whose stacks count
      auto [model, optimizer] = fabric.setup(torch::nn::Linear(8, 8), kAdamW);
      fabric.backward(model(torch::ones({2, 8})).sum());
    }
    std::ifstream status("/proc/self/status");
    double data = 0;
    for (std::string word; status >> word;)
      if (word == "VmData:") status >> data;
    const double state = 16 * 50.6e6;
    rlimit limit{};
    limit.rlim_cur = limit.rlim_max = static_cast<rlim_t>(data * 1024 + 0.4 * state);
    if (setrlimit(RLIMIT_DATA, &limit) != 0) throw std::runtime_error("no limit on memory can be set here");
    auto scope = std::make_unique<fabric::Scope>(fabric.init_module(/*empty_init=*/true));
    Transformer net(kModel);
    scope.reset();
    auto [model, optimizer] = fabric.setup(net, kAdamW);
    Batch batch(1);
    double first = 0, last = 0;
    for (int i = 0; i < 6; ++i) {
      optimizer.zero_grad();
      auto loss = batch.loss(model(batch.x));
      fabric.backward(loss);
      optimizer.step();
      (i == 0 ? first : last) = loss.item<double>();
    }
    left.of(rank) = last / first;
    fabric.barrier();
  });
  bench::figure("4 ranks limited to 0.4 x the state: last loss / first", left.of(0), "", 0.999);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string only = argc > 1 ? argv[1] : "";
  if (only == "--figures") {
    auto full = memory_in_ranks(2, over("fsdp", 2, "gloo"), kBatch);
    std::printf("step %.3f\nmemory %.1f\n", steps_over("gloo", 5).ours, full.peak / 1e6);
    return 0;
  }
  bench::header();
  if (only.empty() || only == "memory") memory_rows();
  if (only.empty() || only == "step") {
    step_rows("gloo", "Gloo", 1.30);
    step_rows("shm", "shared memory", 1.10);
  }
  if (only.empty() || only == "one") one_rank_row();
  if (only.empty() || only == "limit") limited_row();
  if (only.empty() || only == "arithmetic") arithmetic_rows();
}

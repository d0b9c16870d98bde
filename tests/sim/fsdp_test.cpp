// Sharded training on the simulated device: the CPU's numbers, complete waits, and no step that holds up the host.
#include <fabric/fabric.h>
#include <fabric/strategies/fsdp.h>
#include <fabric/strategies/summon.h>

#include "tests/sim/sim_test_support.h"
#include "tests/support/ranks.h"
#include "tests/support/sim_device/parts.h"

using at::Tensor;

namespace {

// A block's matrices are large enough to travel alone, its other parameters are not.
struct SimBlockImpl : torch::nn::Module {
  static constexpr int kWidth = 200;
  SimBlockImpl() {
    norm = register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({kWidth})));
    up = register_module("up", torch::nn::Linear(kWidth, kWidth + 1));
    down = register_module("down", torch::nn::Linear(kWidth + 1, kWidth));
  }
  Tensor forward(const Tensor& x) { return x + down(torch::tanh(up(norm(x)))); }
  torch::nn::LayerNorm norm{nullptr};
  torch::nn::Linear up{nullptr}, down{nullptr};
};
TORCH_MODULE(SimBlock);

struct SimStackImpl : torch::nn::Module {
  SimStackImpl() {
    words = register_module("words", torch::nn::Embedding(11, SimBlockImpl::kWidth));
    blocks = register_module("blocks", torch::nn::ModuleList(SimBlock(), SimBlock()));
    head = register_module("head", torch::nn::Linear(SimBlockImpl::kWidth, 11));
  }
  Tensor forward(const Tensor& ids) {
    auto x = words(ids);
    for (const auto& block : *blocks) x = block->as<SimBlock>()->forward(x);
    return head(x);
  }
  torch::nn::Embedding words{nullptr};
  torch::nn::ModuleList blocks{nullptr};
  torch::nn::Linear head{nullptr};
};
TORCH_MODULE(SimStack);

struct ShardedRun {
  std::vector<Tensor> parameters;  // whole ones, on the CPU
  std::uint64_t waits = 0;         // of the host, in the steps after the first
};

ShardedRun train_sharded(const std::string& accelerator, fabric::Tree::Map settings, const std::string& precision) {
  bool on_cpu = accelerator == "cpu";
  settings["process_group"] = fabric::Tree::Map{{"backend", on_cpu ? "shm" : "sim"}, {"timeout_seconds", 60.0}};
  fabric::Fabric fabric(
      {.accelerator = accelerator, .strategy = fabric::Choice("fsdp", settings), .devices = 2, .precision = precision});
  fabric.launch();
  fabric.seed_everything(5);
  auto [model, optimizer] = fabric.setup(
      SimStack(), [](auto parameters) { return torch::optim::SGD(parameters, torch::optim::SGDOptions(0.1)); });
  torch::manual_seed(10 + fabric.global_rank());
  auto ids = fabric.to_device(torch::randint(11, {3, 4}));
  ShardedRun trained;
  std::optional<sim::Count> count;
  for (int step = 0; step < 4; ++step) {
    if (step == 1) count.emplace();
    optimizer.zero_grad();
    for (int part = 0; part < 2; ++part) {
      auto apart = fabric.no_backward_sync(model, part == 0);
      auto loss = torch::nll_loss(torch::log_softmax(model(ids), -1).flatten(0, 1), ids.flatten());
      fabric.backward(loss);
    }
    fabric.clip_gradients(model, optimizer, {.max_norm = 1.0, .error_if_nonfinite = false});
    optimizer.step();
  }
  trained.waits = count->host_waits();
  {
    auto whole = fabric::summon(model);
    for (const auto& parameter : model->parameters()) trained.parameters.push_back(parameter.detach().cpu().clone());
  }
  fabric.barrier("end");
  fabric.shutdown();
  return trained;
}

void compare_sharded(const fabric::Tree::Map& settings, bool waits = false, const std::string& precision = "32-true") {
  auto ours = train_sharded("sim", settings, precision), cpu = train_sharded("cpu", settings, precision);
  RANK_CHECK(ours.parameters.size() == cpu.parameters.size());
  // What autocast does in 16 bits is another list for the CPU.
  double bound = precision == "32-true" ? 1e-5 : 2e-2;
  for (std::size_t i = 0; i < ours.parameters.size(); ++i)
    RANK_CHECK(at::allclose(ours.parameters[i], cpu.parameters[i], 10 * bound, bound));
  RANK_CHECK((ours.waits > 0) == waits);
}

void require_no_findings() {
  for (const auto& finding : sim::take_findings()) throw std::runtime_error(finding);
}

}  // namespace

RANKS_TEST("fsdp on the device gives the CPU's numbers, and its waits are complete", "[sim][fsdp]", 2) {
  at::set_num_threads(1);
  sim::register_parts();
  compare_sharded({});
  compare_sharded({{"sharding_strategy", "SHARD_GRAD_OP"}});
  compare_sharded({{"sharding_strategy", "NO_SHARD"}});
  compare_sharded({{"sharding_strategy", "HYBRID_SHARD"}, {"device_mesh", fabric::Tree::List{2, 1}}});
  compare_sharded({}, false, "bf16-mixed");
  // What comes back to the host has to be waited for.
  compare_sharded({{"cpu_offload", true}}, true);
  require_no_findings();
}

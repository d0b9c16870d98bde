// One process: a training step through Fabric against the same loop on raw LibTorch.

#include <torch/torch.h>

#include <fabric/fabric.h>
#include <fabric/optim/fused.h>

#include "examples/transformer.h"
#include "tests/bench/bench.h"

namespace {

torch::nn::Sequential make_mlp() {
  return torch::nn::Sequential(torch::nn::Linear(32, 64), torch::nn::ReLU(), torch::nn::Linear(64, 10));
}

struct Mlp {
  torch::Tensor x = torch::randn({32, 32});
  torch::Tensor y = torch::randint(0, 10, {32});
  torch::Tensor loss(const torch::Tensor& logits) const { return torch::nn::functional::cross_entropy(logits, y); }
};

struct Text {
  torch::Tensor x = torch::randint(0, 128, {8, 64});
  torch::Tensor y = torch::randint(0, 128, {8, 64});
  torch::Tensor loss(const torch::Tensor& logits) const {
    return torch::nn::functional::cross_entropy(logits.flatten(0, 1), y.flatten());
  }
};

// The same step twice, through Fabric's wrappers and on the bare objects inside them: two copies of a model differ by a
// percent through nothing but where their tensors lie in memory.
template <class Module, class Optimizer, class Batch>
struct Sides {
  fabric::Fabric fabric{{.strategy = "single_device"}};
  Module bare;
  Optimizer bare_optimizer;
  Batch batch;
  fabric::FabricModule<typename fabric::detail::ModuleTraits<Module>::ImplType> model;
  fabric::FabricOptimizer optimizer;

  template <class MakeOptimizer>
  Sides(Module module, MakeOptimizer make)
      : bare(module),
        bare_optimizer(make(bare->parameters())),
        model(fabric.setup(bare)),
        optimizer(fabric.setup_optimizers(bare_optimizer)) {}

  void raw_step() {
    bare_optimizer.zero_grad();
    auto loss = batch.loss(bare->forward(batch.x));
    loss.backward();
    bare_optimizer.step();
  }
  void fabric_step() {
    optimizer.zero_grad();
    auto loss = batch.loss(model(batch.x));
    fabric.backward(loss);
    optimizer.step();
  }
};

template <class Side>
void report(const std::string& what, Side& sides, int count, int rounds, double bar) {
  auto pair = bench::compare([&] { sides.fabric_step(); }, [&] { sides.raw_step(); }, count, rounds);
  bench::row(what, pair.ours, pair.theirs, "us", bar);
  auto ours = bench::instructions([&] {
    for (int i = 0; i < count; ++i) sides.fabric_step();
  });
  auto theirs = bench::instructions([&] {
    for (int i = 0; i < count; ++i) sides.raw_step();
  });
  if (theirs) bench::row(what + ", instructions", ours / 1e3 / count, theirs / 1e3 / count, "k", bar);
}

}  // namespace

// Only our side, for a comparison that another program makes: prints microseconds per step.
template <class Side>
void print_time(Side&& sides, int count) {
  double best = 1e300;
  for (int round = 0; round < 5; ++round) best = std::min(best, bench::time_us([&] { sides.fabric_step(); }, count));
  std::printf("%.2f\n", best);
}

void time_only(const std::string& load, const std::string& optimizer) {
  auto sgd = [](auto parameters) { return torch::optim::SGD(parameters, 0.01); };
  auto adamw = [](auto parameters) { return fabric::optim::AdamW(parameters, 0.01); };
  using Sequential = torch::nn::Sequential;
  if (load == "transformer")
    print_time(Sides<Transformer, torch::optim::SGD, Text>(Transformer(TransformerConfig{}), sgd), 4);
  else if (optimizer == "adamw")
    print_time(Sides<Sequential, fabric::optim::AdamW, Mlp>(make_mlp(), adamw), 500);
  else
    print_time(Sides<Sequential, torch::optim::SGD, Mlp>(make_mlp(), sgd), 500);
}

int main(int argc, char** argv) {
  at::set_num_threads(1);
  torch::manual_seed(0);
  if (argc == 4 && std::string(argv[1]) == "--time") {
    time_only(argv[2], argv[3]);
    return 0;
  }
  bench::header();
  auto sgd = [](auto parameters) { return torch::optim::SGD(parameters, 0.01); };
  {
    Sides<torch::nn::Sequential, torch::optim::SGD, Mlp> sides(make_mlp(), sgd);
    report("step through Fabric, MLP, SGD / raw loop", sides, 1000, 15, 1.02);
    auto ours = bench::allocations([&] {
      for (int i = 0; i < 1000; ++i) sides.fabric_step();
    });
    auto theirs = bench::allocations([&] {
      for (int i = 0; i < 1000; ++i) sides.raw_step();
    });
    bench::figure("allocations per step added by Fabric, MLP", (double(ours) - double(theirs)) / 1000, "", 4);
  }
  {
    TransformerConfig config;
    Sides<Transformer, torch::optim::SGD, Text> sides(Transformer{config}, sgd);
    report("step through Fabric, transformer / raw loop", sides, 1, 100, 1.005);
  }
  {
    Mlp batch;
    auto plain_net = make_mlp(), fused_net = make_mlp();
    torch::optim::AdamW plain(plain_net->parameters(), 1e-3);
    fabric::optim::AdamW fused(fused_net->parameters(), 1e-3);
    auto step = [&](auto& net, auto& optimizer) {
      optimizer.zero_grad();
      batch.loss(net->forward(batch.x)).backward();
      optimizer.step();
    };
    auto pair = bench::compare([&] { step(fused_net, fused); }, [&] { step(plain_net, plain); }, 1000, 15);
    bench::row("MLP step, fused AdamW / torch::optim::AdamW", pair.ours, pair.theirs, "us", 0.70);
  }
}

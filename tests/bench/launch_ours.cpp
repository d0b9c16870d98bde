// Two ranks through Fabric::launch, up to the first barrier; says "ready" and ends. Started by bench_launch. The start
// method comes from START_METHOD: auto or popen. With --ddp it trains a small network over Gloo instead and prints
// microseconds per step, for a comparison that another program makes.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <torch/torch.h>

#include <fabric/fabric.h>

#include "tests/bench/bench.h"

namespace {

double time_of_step(fabric::Fabric& fabric) {
  at::set_num_threads(1);
  auto x = torch::randn({32, 32}), y = torch::randint(0, 10, {32});
  auto [model, optimizer] =
      fabric.setup(torch::nn::Sequential(torch::nn::Linear(32, 64), torch::nn::ReLU(), torch::nn::Linear(64, 10)),
                   [](auto parameters) { return torch::optim::SGD(parameters, 0.01); });
  auto step = [&, &model = model, &optimizer = optimizer] {
    optimizer.zero_grad();
    fabric.backward(torch::nn::functional::cross_entropy(model(x), y));
    optimizer.step();
  };
  double best = 1e300;
  for (int round = 0; round < 6; ++round) best = std::min(best, bench::time_us(step, 200));
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  fabric::Choice strategy("ddp");
  if (const char* method = std::getenv("START_METHOD")) strategy.params["start_method"] = method;
  fabric::Fabric fabric({.accelerator = "cpu", .strategy = strategy, .devices = 2});
  fabric.launch();
  fabric.barrier();
  bool train = argc > 1 && std::strcmp(argv[1], "--ddp") == 0;
  double microseconds = train ? time_of_step(fabric) : 0;
  if (fabric.is_global_zero()) {
    train ? std::printf("%.2f\n", microseconds) : std::printf("ready\n");
    std::fflush(stdout);
  }
}

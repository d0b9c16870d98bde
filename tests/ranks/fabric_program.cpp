// A program that launches itself with Fabric, trains three steps and says what came out. Arguments: start method, and
// "trained" to train in one process before, or "without function" to launch without one.
#include <cstdio>
#include <string>

#include <torch/torch.h>

#include <fabric/fabric.h>

namespace {

// The sum of all parameters after three steps over each rank's own numbers.
double train(fabric::Fabric& fabric) {
  torch::manual_seed(5);
  auto [model, optimizer] =
      fabric.setup(torch::nn::Linear(8, 4), [](auto parameters) { return torch::optim::SGD(parameters, 0.1); });
  torch::manual_seed(fabric.global_rank());
  for (int step = 0; step < 3; ++step) {
    optimizer.zero_grad();
    fabric.backward(model(torch::randn({16, 8})).pow(2).mean());
    optimizer.step();
  }
  return (model->weight.sum() + model->bias.sum()).item<double>();
}

}  // namespace

int main(int, char** argv) {
  std::string method = argv[1], before = argv[2] ? argv[2] : "";
  at::set_num_threads(1);
  std::printf("before launch\n");
  if (before == "trained") {
    fabric::Fabric alone({.accelerator = "cpu", .strategy = "single_device"});
    train(alone);
  }
  fabric::Choice strategy("ddp");
  strategy.params["start_method"] = method;
  fabric::Fabric fabric({.accelerator = "cpu", .strategy = strategy, .devices = 2});
  if (before == "without function") {
    try {
      fabric.launch();
    } catch (const fabric::MisuseError& error) {
      std::printf("refused: %s\n", error.what());
    }
    return 0;
  }
  if (method == "spawn" || method == "fork") {
    std::printf("result %.9f\n", fabric.launch(train));
    return 0;
  }
  fabric.launch();
  std::printf("rank %d of %d result %.9f\n", fabric.global_rank(), fabric.world_size(), train(fabric));
  fabric.shutdown();
  fabric::Fabric again({.accelerator = "cpu", .strategy = strategy, .devices = 2});
  again.launch();
  std::printf("again %.9f\n", train(again));
}

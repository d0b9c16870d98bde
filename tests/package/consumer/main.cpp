// The smallest training loop: what a program that uses the library needs in order to build, link and run.
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include <iostream>

#include <fabric/fabric.h>

#if defined(SPDLOG_VERSION) || defined(CLI11_VERSION) || defined(NLOHMANN_JSON_VERSION_MAJOR) || defined(MPI_VERSION)
#error "a header of TorchFabric drags a third-party header into this program"
#endif

int main() {
  fabric::Fabric fabric({.accelerator = "cpu", .strategy = "single_device"});
  fabric.launch();
  fabric.seed_everything(1, true, false);
  auto [model, optimizer] =
      fabric.setup(torch::nn::Linear(2, 1), [](auto parameters) { return torch::optim::SGD(parameters, 0.01); });
  auto x = torch::tensor({{1.0f, 2.0f}, {3.0f, 4.0f}});
  auto y = torch::tensor({{1.0f}, {2.0f}});
  double first = 0, loss_value = 0;
  for (int step = 0; step < 20; ++step) {
    optimizer.zero_grad();
    auto loss = torch::nn::functional::mse_loss(model(x), y);
    fabric.backward(loss);
    optimizer.step();
    loss_value = loss.item<double>();
    if (step == 0) first = loss_value;
  }
  std::cout << "consumer: loss " << first << " -> " << loss_value << std::endl;
  return loss_value < first ? 0 : 1;
}

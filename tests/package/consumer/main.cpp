// The smallest training loop: what a program that uses the library needs in order to build, link and run. Given the
// name of a process group, it is one of the ranks of ddp over that group, whose plug-in the library has to find.
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include <iostream>
#include <sstream>
#include <string>

#include <fabric/fabric.h>

#if defined(SPDLOG_VERSION) || defined(CLI11_VERSION) || defined(NLOHMANN_JSON_VERSION_MAJOR) || defined(MPI_VERSION)
#error "a header of TorchFabric drags a third-party header into this program"
#endif

namespace {

fabric::Fabric::Config config_for(const std::string& group) {
  if (group.empty()) return {.accelerator = "cpu", .strategy = "single_device"};
  fabric::Choice strategy("ddp");
  strategy.params["process_group"] = fabric::Tree::Map{{"backend", group}};
  return {.accelerator = "cpu", .strategy = strategy};
}

}  // namespace

int main(int argc, char** argv) {
  fabric::Fabric fabric(config_for(argc > 1 ? argv[1] : ""));
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
  std::ostringstream line;
  line << "consumer: rank " << fabric.global_rank() << " of " << fabric.world_size() << ", loss " << first << " -> "
       << loss_value << "\n";
  std::cout << line.str() << std::flush;
  return loss_value < first ? 0 : 1;
}

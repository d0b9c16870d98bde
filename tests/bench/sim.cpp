// What the simulated device and its order checker cost: a step of training on the digits' shapes, and one operator
// after another on 1,000 views of one buffer.
#include <torch/torch.h>

#include "tests/bench/bench.h"
#include "tests/support/sim_device/device.h"

namespace {

struct Training {
  explicit Training(c10::Device device) {
    torch::manual_seed(1);
    net->to(device);
    optimizer = std::make_unique<torch::optim::AdamW>(net->parameters(), torch::optim::AdamWOptions(1e-3));
    data = torch::randn({64, 1, 8, 8}).to(device);
    target = torch::randint(10, {64}).to(device);
  }
  void step() {
    optimizer->zero_grad();
    torch::nll_loss(torch::log_softmax(net->forward(data), 1), target).backward();
    optimizer->step();
  }
  torch::nn::Sequential net{torch::nn::Conv2d(torch::nn::Conv2dOptions(1, 16, 3).padding(1)),
                            torch::nn::ReLU(),
                            torch::nn::Conv2d(torch::nn::Conv2dOptions(16, 32, 3).padding(1)),
                            torch::nn::ReLU(),
                            torch::nn::MaxPool2d(2),
                            torch::nn::Flatten(),
                            torch::nn::Linear(512, 10)};
  std::unique_ptr<torch::optim::AdamW> optimizer;
  torch::Tensor data, target;
};

}  // namespace

int main() {
  at::set_num_threads(1);
  sim::start();
  bench::header();
  Training here(c10::kCPU), there(sim::sim_device(0));
  auto steps = bench::compare([&] { there.step(); }, [&] { here.step(); }, 20, 5);
  bench::row("digits step on the simulated device, CPU", steps.ours, steps.theirs, "us", 3.0);

  constexpr int kViews = 1000, kWidth = 64;
  auto buffer = at::zeros({kViews * kWidth}, sim::on());
  std::vector<at::Tensor> views;
  for (int i = 0; i < kViews; ++i) views.push_back(buffer.slice(0, i * kWidth, (i + 1) * kWidth));
  auto pass = [&](bool checked) {
    sim::Order::instance().enabled = checked;
    for (auto& view : views) view.add_(1);
  };
  auto passes = bench::compare([&] { pass(true); }, [&] { pass(false); }, 5, 20);
  bench::figure("order checker, per operator on 1,000 views", (passes.ours - passes.theirs) / kViews, "us", 1.0);
  return sim::take_findings().empty() ? 0 : 1;
}

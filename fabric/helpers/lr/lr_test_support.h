#pragma once

#include <torch/torch.h>

#include <vector>

#include <fabric/helpers/lr/lr_scheduler.h>

// What the tests of learning-rate schedulers share.
namespace lr_test {

using fabric::get_lr;
using fabric::LRScheduler;
using fabric::set_lr;
using torch::optim::SGD;
using torch::optim::SGDOptions;

inline at::Tensor parameter() { return torch::zeros({2}, torch::requires_grad()); }

inline SGD one_group(double lr = 0.1) { return SGD({parameter()}, SGDOptions(lr)); }

inline SGD two_groups(double first = 0.1, double second = 0.01) {
  SGD optimizer({torch::optim::OptimizerParamGroup({parameter()}), torch::optim::OptimizerParamGroup({parameter()})},
                SGDOptions(0.1));
  set_lr(optimizer.param_groups()[0], first);
  set_lr(optimizer.param_groups()[1], second);
  return optimizer;
}

inline void add_group(torch::optim::Optimizer& optimizer, double lr) {
  optimizer.add_param_group(torch::optim::OptimizerParamGroup({parameter()}));
  set_lr(optimizer.param_groups().back(), lr);
}

inline std::vector<double> lrs_of(const torch::optim::Optimizer& optimizer) {
  std::vector<double> lrs;
  for (const auto& group : optimizer.param_groups()) lrs.push_back(get_lr(group));
  return lrs;
}

inline void step(LRScheduler& scheduler, int times) {
  for (int i = 0; i < times; ++i) scheduler.step();
}

// A class of the user's own: the learning rate halves, then stands still.
class HalveTwice : public LRScheduler {
 public:
  explicit HalveTwice(torch::optim::Optimizer& optimizer) : LRScheduler(optimizer) { start(-1); }
  const char* name() const override { return "HalveTwice"; }

 protected:
  double next_lr(std::size_t, double lr) override { return is_initial() || last_epoch() > 2 ? lr : lr / 2; }
};

}  // namespace lr_test

#pragma once

#include <memory>
#include <utility>
#include <vector>

#include <fabric/strategies/ddp.h>

namespace fabric::ddp {

class Modules;

/// Local SGD inside ddp: one averager per optimizer, and the switch that keeps gradients local after the warm-up.
class ModelAveraging {
 public:
  ModelAveraging(const DDPStrategy::Config& config, ProcessGroup group, std::shared_ptr<Modules> modules);
  /// Counts the optimizer's step and averages its parameters when due.
  void after_step(torch::optim::Optimizer& optimizer);

 private:
  ModelAverager& averager_of(const std::vector<at::Tensor>& params);

  ModelAverager::Config config_;
  ProcessGroup group_;
  std::shared_ptr<Modules> modules_;
  // By the first parameter: an optimizer may be replaced by another, whose address, old or new, the ranks do not share.
  std::vector<std::pair<const void*, ModelAverager>> averagers_;
};

}  // namespace fabric::ddp

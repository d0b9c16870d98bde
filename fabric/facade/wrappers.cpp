#include <fabric/facade/wrappers.h>

namespace fabric {
namespace detail {

ModuleCore::ModuleCore(std::shared_ptr<Strategy> strategy, std::unique_ptr<StrategyModule> module,
                       std::shared_ptr<std::atomic<int>> backward_depth, c10::Device device)
    : strategy_(std::move(strategy)),
      module_(std::move(module)),
      backward_depth_(std::move(backward_depth)),
      device_(device),
      converts_(strategy_->precision()->changes_forward()),
      guards_backward_(strategy_->requires_backward_call()) {
  strategy_->add_module(*module_);
  direct_ = !converts_ && !guards_backward_ && !module_->intercepts_forward();
}

void ModuleCore::run(ForwardCall& call) {
  Precision& precision = *strategy_->precision();
  if (converts_) call.for_each_input([&](at::Tensor& tensor) { tensor = precision.convert_input(tensor); });
  {
    Scope context;
    if (converts_) context = precision.forward_context();
    const auto& forward_scope = module_->forward_scope();
    Scope around = forward_scope ? forward_scope() : Scope();
    module_->call(call);
  }
  if (converts_) call.for_each_output([&](at::Tensor& tensor) { tensor = precision.convert_output(tensor); });
  if (!guards_backward_) return;
  call.for_each_output([&](at::Tensor& tensor) {
    if (!tensor.requires_grad()) return;
    tensor.register_hook([depth = backward_depth_](const at::Tensor&) {
      if (depth->load(std::memory_order_relaxed) == 0)
        throw MisuseError(
            "loss.backward() was called, but this strategy or precision does more than that in the backward pass. "
            "Write fabric.backward(loss) instead");
    });
  });
}

}  // namespace detail

FabricOptimizer::FabricOptimizer(std::shared_ptr<torch::optim::Optimizer> optimizer, std::shared_ptr<Strategy> strategy,
                                 std::shared_ptr<std::vector<std::shared_ptr<Callback>>> callbacks)
    : optimizer_(std::make_shared<std::shared_ptr<torch::optim::Optimizer>>(std::move(optimizer))),
      strategy_(std::move(strategy)),
      callbacks_(std::move(callbacks)) {}

at::Tensor FabricOptimizer::step(const Closure& closure) const {
  if (const auto& io = strategy_->checkpoint_io()) io->await_copy();
  at::Tensor loss = strategy_->optimizer_step(**optimizer_, closure);
  for (const auto& callback : *callbacks_) callback->on_after_optimizer_step(*strategy_, **optimizer_);
  return loss;
}

std::shared_ptr<torch::optim::Optimizer> FabricOptimizer::replace(
    std::shared_ptr<torch::optim::Optimizer> optimizer) const {
  if (!optimizer) throw MisuseError("replace was given an empty optimizer");
  return std::exchange(*optimizer_, strategy_->setup_optimizer(std::move(optimizer)));
}

}  // namespace fabric

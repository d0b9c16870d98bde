#include <fabric/strategies/dp.h>

#include <ATen/ThreadLocalState.h>
#include <ATen/ops/cat.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <exception>
#include <optional>
#include <thread>

#include <fabric/base/lifecycle.h>
#include <fabric/base/log.h>

#include "strategies/dp/dp_register.h"
#include "strategies/dp/replicate.h"

namespace fabric {
namespace {

class ReplicatedModule : public StrategyModule {
 public:
  ReplicatedModule(Strategy& strategy, std::shared_ptr<torch::nn::Module> module, std::vector<c10::Device> devices)
      : StrategyModule(strategy, std::move(module)), devices_(std::move(devices)) {}
  bool intercepts_forward() const override { return devices_.size() > 1 || !devices_.front().is_cpu(); }
  void call(ForwardCall& forward) override;
  Scope no_backward_sync(bool enabled) override;

 private:
  using Calls = std::vector<ForwardCall*>;
  std::vector<std::shared_ptr<torch::nn::Module>> replicate(std::size_t count) const;
  void run(const Calls& calls, const std::vector<std::shared_ptr<torch::nn::Module>>& targets) const;
  void gather(const Calls& calls) const;

  std::vector<c10::Device> devices_;  // the first one holds the original
};

std::int64_t batch_size(ForwardCall& call) {
  std::int64_t size = -1;
  bool all_seen = call.for_each_input([&](at::Tensor& tensor) {
    if (size < 0 && tensor.dim() > 0) size = tensor.size(0);
  });
  if (!all_seen)
    throw MisuseError(
        "dp has to split the model's arguments, and the type of one is unknown to it. Add FABRIC_TENSORS(Type, member, "
        "…) "
        "to the type, naming the members that hold tensors");
  if (size <= 0)
    throw MisuseError("dp splits a batch over devices, and found no tensor with a first dimension among the arguments");
  return size;
}

// Gives `call` its share of the batch, on its device.
void take_chunk(ForwardCall& call, std::int64_t batch, std::int64_t begin, std::int64_t length, c10::Device device) {
  call.for_each_input([&](at::Tensor& tensor) {
    if (tensor.dim() > 0 && tensor.size(0) == batch) tensor = tensor.narrow(0, begin, length);
    tensor = tensor.to(device, /*non_blocking=*/!device.is_cpu());
  });
}

void ReplicatedModule::call(ForwardCall& forward) {
  if (devices_.size() == 1) {
    forward.for_each_input([&](at::Tensor& tensor) { tensor = tensor.to(devices_.front(), /*non_blocking=*/true); });
    return forward.run(*module());
  }
  std::int64_t batch = batch_size(forward);
  // As even as `chunk` makes it: all but the last have the same length.
  std::int64_t length =
      (batch + static_cast<std::int64_t>(devices_.size()) - 1) / static_cast<std::int64_t>(devices_.size());
  auto count = static_cast<std::size_t>((batch + length - 1) / length);
  std::vector<std::unique_ptr<ForwardCall>> others;
  Calls calls{&forward};
  for (std::size_t i = 1; i < count; ++i) {
    others.push_back(forward.clone());
    calls.push_back(others.back().get());
  }
  for (std::size_t i = 0; i < count; ++i) {
    auto begin = static_cast<std::int64_t>(i) * length;
    take_chunk(*calls[i], batch, begin, std::min(length, batch - begin), devices_[i]);
  }
  run(calls, replicate(count));
  gather(calls);
}

std::vector<std::shared_ptr<torch::nn::Module>> ReplicatedModule::replicate(std::size_t count) const {
  std::vector<std::shared_ptr<torch::nn::Module>> targets{module()};
  for (std::size_t i = 1; i < count; ++i) targets.push_back(fabric::replicate(module(), devices_[i]));
  return targets;
}

// One thread per device, since launching kernels is work of its own. Each goes on on this thread's stream of its
// device, where its part of the batch was put.
void ReplicatedModule::run(const Calls& calls, const std::vector<std::shared_ptr<torch::nn::Module>>& targets) const {
  at::ThreadLocalState state;
  std::vector<std::exception_ptr> failures(calls.size());
  std::vector<std::optional<c10::Stream>> streams(calls.size());
  for (std::size_t i = 0; i < calls.size(); ++i)
    if (!devices_[i].is_cpu()) streams[i] = c10::impl::VirtualGuardImpl(devices_[i].type()).getStream(devices_[i]);
  auto work = [&](std::size_t i) {
    try {
      c10::OptionalStreamGuard guard(streams[i]);
      calls[i]->run(*targets[i]);
    } catch (...) {
      failures[i] = std::current_exception();
    }
  };
  std::vector<std::jthread> threads;  // joined, too, when the next one cannot be started
  for (std::size_t i = 1; i < calls.size(); ++i)
    threads.emplace_back([&, i] {
      at::ThreadLocalStateGuard guard(state);
      work(i);
    });
  work(0);
  for (auto& thread : threads) thread.join();
  for (const auto& failure : failures)
    if (failure) std::rethrow_exception(failure);
}

void ReplicatedModule::gather(const Calls& calls) const {
  std::vector<std::vector<at::Tensor>> outputs(calls.size());
  for (std::size_t i = 0; i < calls.size(); ++i) {
    bool all_seen = calls[i]->for_each_output([&](at::Tensor& tensor) { outputs[i].push_back(tensor); });
    if (!all_seen)
      throw MisuseError(
          "dp has to join the model's results, whose type is unknown to it. Add FABRIC_TENSORS(Type, member, …) to the "
          "type, naming the members that hold tensors");
    if (outputs[i].size() != outputs[0].size())
      throw MisuseError("dp cannot join the model's results: their number differs between the parts of the batch");
  }
  std::size_t next = 0;
  calls[0]->for_each_output([&](at::Tensor& tensor) {
    std::vector<at::Tensor> parts;
    for (const auto& output : outputs) {
      at::Tensor part = output[next].dim() == 0 ? output[next].unsqueeze(0) : output[next];
      parts.push_back(part.to(devices_.front()));
    }
    tensor = at::cat(parts);
    ++next;
  });
}

// Nothing is synchronised, so there is nothing to leave out.
Scope ReplicatedModule::no_backward_sync(bool enabled) {
  if (enabled)
    log::warn_once("no_backward_sync does nothing with strategy dp: gradients add up in one process, without messages");
  return {};
}

}  // namespace

DataParallelStrategy::DataParallelStrategy(std::vector<c10::Device> devices) : are_own_(!devices.empty()) {
  set_devices(devices.empty() ? std::vector<c10::Device>{c10::kCPU} : std::move(devices));
}

void DataParallelStrategy::set_devices(std::vector<c10::Device> devices) {
  if (devices.empty()) throw ConfigError("dp needs at least one device");
  devices_ = std::move(devices);
}

std::string DataParallelStrategy::reason_against(const fabric::Accelerator& accelerator) const {
  return accelerator.device_type() == c10::kCPU ? "needs several GPUs in one process" : "";
}

std::unique_ptr<StrategyModule> DataParallelStrategy::setup_module(std::shared_ptr<torch::nn::Module> module,
                                                                   const SetupOptions& options) {
  FABRIC_WARN_EXPERIMENTAL("DataParallelStrategy");
  place_module(*module, options);
  return std::make_unique<ReplicatedModule>(*this, std::move(module), devices_);
}

at::Tensor DataParallelStrategy::batch_to_device(const at::Tensor& tensor, std::optional<c10::Device> device) {
  return device ? Strategy::batch_to_device(tensor, device) : tensor;
}

at::Tensor DataParallelStrategy::all_reduce(const at::Tensor& tensor, ReduceOp op, const ProcessGroup&) {
  auto result = tensor.detach();
  if (op != ReduceOp::mean) return result.clone();
  if (result.is_floating_point() || result.is_complex()) return result.mean();
  return result.mean(at::kDouble).to(tensor.scalar_type());
}

void DataParallelStrategy::all_reduce_(at::Tensor& tensor, ReduceOp op, const ProcessGroup& group) {
  tensor = all_reduce(tensor, op, group);
}

void register_dp(StrategyRegistry& registry) {
  registry.register_strategy(
      "dp",
      [](const Tree& params) -> std::shared_ptr<Strategy> {
        if (params.is_map() && !params.as_map().empty())
          throw ConfigError("strategy dp has no settings; given: " + params.as_map().begin()->first);
        return std::make_shared<DataParallelStrategy>();
      },
      "one process, several devices: the batch is split over copies of the module");
}

}  // namespace fabric

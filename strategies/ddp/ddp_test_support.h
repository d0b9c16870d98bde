#pragma once

#include <torch/torch.h>

#include <memory>
#include <string>
#include <utility>

#include <fabric/facade/wrappers.h>
#include <fabric/strategies/ddp.h>

#include "tests/support/group_of_ranks.h"

// What the tests of ddp share: a strategy over the ranks of the test, and wrapped models without the whole Fabric.
namespace ddp_test {

/// One group per process, over Gloo or, under mpirun, MPI; each strategy of a test uses it.
inline fabric::ProcessGroup join_group(double timeout_seconds = 60) {
  at::set_num_threads(1);
  return ranks::group_from_env({.timeout_seconds = timeout_seconds});
}

inline std::shared_ptr<fabric::DDPStrategy> make_ddp(const fabric::ProcessGroup& group,
                                                     fabric::DDPStrategy::Config config = {}) {
  auto strategy = std::make_shared<fabric::DDPStrategy>(std::move(config));
  strategy->set_process_group(group);
  strategy->set_precision(std::make_shared<fabric::Precision>());
  return strategy;
}

template <class Strategy, class Holder>
auto wrap(const std::shared_ptr<Strategy>& strategy, const Holder& module) {
  using Impl = typename Holder::ContainedType;
  auto core = std::make_shared<fabric::detail::ModuleCore>(
      strategy, strategy->setup_module(module.ptr()), std::make_shared<std::atomic<int>>(0), c10::Device(c10::kCPU));
  return fabric::FabricModule<Impl>(module.ptr(), core);
}

struct NetImpl : torch::nn::Module {
  explicit NetImpl(at::ScalarType type = at::kDouble, int64_t in = 6, int64_t hidden = 8, int64_t out = 3)
      : first(register_module("first", torch::nn::Linear(in, hidden))),
        second(register_module("second", torch::nn::Linear(hidden, out))) {
    to(type);
  }
  at::Tensor forward(const at::Tensor& x) { return second(torch::tanh(first(x))); }
  at::Tensor hidden(const at::Tensor& x) { return first(x); }
  torch::nn::Linear first, second;
};
TORCH_MODULE(Net);

/// Rows `rank`, `rank` + world, … of a batch.
inline at::Tensor share(const at::Tensor& batch, int rank, int world) {
  return batch.slice(0, rank, batch.size(0), world).contiguous();
}

inline double max_difference(torch::nn::Module& a, torch::nn::Module& b) {
  torch::NoGradGuard no_grad;
  double worst = 0;
  auto left = a.parameters(), right = b.parameters();
  for (std::size_t i = 0; i < left.size(); ++i)
    worst = std::max(worst, (left[i] - right[i]).abs().max().template item<double>());
  return worst;
}

/// Whether every rank has the same parameters and buffers, bit for bit.
inline bool equal_on_all_ranks(torch::nn::Module& module, const fabric::ProcessGroup& group) {
  torch::NoGradGuard no_grad;
  bool equal = true;
  auto tensors = module.parameters();
  for (auto& buffer : module.buffers()) tensors.push_back(buffer);
  for (auto& tensor : tensors) {
    at::Tensor first = tensor.detach().clone();
    group.broadcast_(first, 0);
    equal &= torch::equal(first, tensor);
  }
  return group.all(equal);
}

/// The text of the error that `action` throws; empty when it throws none.
template <class Error, class Action>
std::string error_of(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace ddp_test

#include "tests/support/sim_device/names.h"

#include <vector>

#include "tests/support/sim_device/order.h"

namespace sim {
namespace {

using WeakTensor = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;

struct Named {
  WeakTensor tensor;
  std::string name;
};

std::vector<Named>& named_tensors() {
  static auto* all = new std::vector<Named>;
  return *all;
}

bool lies_in(const at::Tensor& tensor, const Block& block, std::size_t begin, std::size_t end) {
  if (!tensor.defined() || !tensor.has_storage() || !is_sim(tensor)) return false;
  auto used = extent_of(tensor);
  return used.block == &block && used.begin < end && begin < used.end;
}

std::string name_of_bytes(const Block& block, std::size_t begin, std::size_t end) {
  for (const auto& named : named_tensors()) {
    auto strong = named.tensor.lock();
    if (!strong) continue;
    at::Tensor tensor(std::move(strong));
    if (lies_in(tensor, block, begin, end)) return "'" + named.name + "'";
    if (tensor.is_leaf() && lies_in(tensor.grad(), block, begin, end)) return "the gradient of '" + named.name + "'";
  }
  return "";
}

}  // namespace

void name_tensor(const at::Tensor& tensor, const std::string& name) {
  Lock lock(Order::instance().mutex());
  std::erase_if(named_tensors(), [](const Named& named) { return named.tensor.expired(); });
  named_tensors().push_back({WeakTensor(tensor.getIntrusivePtr()), name});
}

void name_tensors(const torch::nn::Module& module) {
  for (const auto& item : module.named_parameters()) name_tensor(item.value(), item.key());
  for (const auto& item : module.named_buffers()) name_tensor(item.value(), item.key());
}

std::string describe(const Block& block, std::size_t begin, std::size_t end) {
  auto name = name_of_bytes(block, begin, end);
  auto place = "block " + std::to_string(block.id);
  if (begin > 0 || end < block.size)
    place = "bytes " + std::to_string(begin) + " to " + std::to_string(end) + " of " + place;
  return name.empty() ? place : name + " (" + place + ")";
}

}  // namespace sim

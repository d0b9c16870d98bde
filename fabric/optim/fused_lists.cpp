#include "fabric/optim/fused_lists_internal.h"

#include <array>
#include <atomic>

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/TensorOptions.h>

namespace fabric::optim::detail {
namespace {

// Whether LibTorch has fused steps for this kind of device. They come together, so one is asked for, and once.
bool has_fused_steps(c10::DeviceType type) {
  constexpr std::size_t kTypes = static_cast<std::size_t>(c10::DeviceType::COMPILE_TIME_MAX_DEVICE_TYPES);
  enum : signed char { kUnknown, kNo, kYes };
  static std::array<std::atomic<signed char>, kTypes> answers{};
  auto& answer = answers.at(static_cast<std::size_t>(type));
  if (answer == kUnknown) {
    auto key = c10::computeDispatchKey(c10::ScalarType::Float, c10::kStrided, c10::Device(type, 0));
    auto step = c10::Dispatcher::singleton().findSchema({"aten::_fused_adamw_", ""});
    answer = step && step->hasKernelForDispatchKey(key) ? kYes : kNo;
  }
  return answer == kYes;
}

bool is_plain_number(c10::ScalarType dtype) {
  return dtype == c10::ScalarType::Float || dtype == c10::ScalarType::Double || dtype == c10::ScalarType::Half ||
         dtype == c10::ScalarType::BFloat16;
}

}  // namespace

bool has_fused_kernel(const at::Tensor& parameter, const at::Tensor& gradient) {
  return has_fused_steps(parameter.device().type()) && is_plain_number(parameter.scalar_type()) &&
         parameter.layout() == c10::kStrided && gradient.layout() == c10::kStrided &&
         parameter.is_non_overlapping_and_dense();
}

at::Tensor laid_out_like(const at::Tensor& parameter, const at::Tensor& tensor) {
  if (same_layout(parameter, tensor) && tensor.device() == parameter.device() &&
      tensor.scalar_type() == parameter.scalar_type())
    return tensor;
  return at::empty_like(parameter).copy_(tensor);
}

}  // namespace fabric::optim::detail

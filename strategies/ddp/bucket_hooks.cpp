#include "strategies/ddp/bucket_hooks.h"

#include <c10/core/GradMode.h>

namespace fabric::ddp {
namespace {

at::Tensor only_tensor(const c10::IValue& result) {
  if (result.isTensor()) return result.toTensor();
  if (result.isTensorList() && result.toTensorList().size() == 1) return result.toTensorList().get(0);
  throw MisuseError("a communication hook's future must hold one tensor, or a list of one");
}

// Averages `tensor` in place; `after` turns the finished tensor into the bucket's own.
template <class After>
CommHook::Future average(c10d::ProcessGroup& group, at::Tensor tensor, After after) {
  std::vector<at::Tensor> tensors{std::move(tensor)};
  auto work = group.allreduce(tensors);
  return work->getFuture()->then(
      [after = std::move(after)](c10::ivalue::Future& future) -> c10::IValue {
        c10::NoGradGuard no_grad;
        return after(future_tensor(future));
      },
      c10::TensorType::get());
}

}  // namespace

at::Tensor future_tensor(const c10::ivalue::Future& future) { return only_tensor(future.constValue()); }

CommHook::Future completed(const at::Tensor& tensor) {
  std::vector<c10::Device> devices;
  if (!tensor.is_cpu()) devices.push_back(tensor.device());
  auto future = c10::make_intrusive<c10::ivalue::Future>(c10::TensorType::get(), std::move(devices));
  future->markCompleted(tensor);
  return future;
}

at::Tensor HookAdapter::parseHookResult(const c10::IValue& result) { return only_tensor(result); }

CommHook::Future AllReduceHook::run(c10d::GradBucket& bucket) {
  at::Tensor buffer = bucket.getBuffer();
  buffer.div_(group_->getSize());
  return average(*group_, buffer, [](at::Tensor sum) { return sum; });
}

CommHook::Future CompressHook::run(c10d::GradBucket& bucket) {
  at::Tensor buffer = bucket.getBuffer();
  // Dividing first keeps the sum inside the small type's range.
  at::Tensor small = buffer.to(type_).div_(group_->getSize());
  return average(*group_, small, [buffer](const at::Tensor& sum) { return at::Tensor(buffer).copy_(sum); });
}

CommHook::Future CastWrapper::run(c10d::GradBucket& bucket) {
  at::Tensor original = bucket.getBuffer();
  at::Tensor cast = original.to(type_);
  bucket.setBuffer(cast);
  return inner_->run(bucket)->then(
      [original](c10::ivalue::Future& future) -> c10::IValue {
        c10::NoGradGuard no_grad;
        return at::Tensor(original).copy_(future_tensor(future));
      },
      c10::TensorType::get());
}

}  // namespace fabric::ddp

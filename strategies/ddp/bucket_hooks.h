#pragma once

#include <memory>

#include <ATen/core/ivalue.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/comm.hpp>

#include <fabric/strategies/ddp_comm_hooks.h>

namespace fabric::ddp {

/// Sums the bucket over the ranks and divides.
class AllReduceHook : public CommHook {
 public:
  explicit AllReduceHook(const ProcessGroup& group) : group_(group.c10d()) {}
  Future run(c10d::GradBucket& bucket) override;

 private:
  c10::intrusive_ptr<c10d::ProcessGroup> group_;
};

/// Sends the bucket in another floating type.
class CompressHook : public CommHook {
 public:
  CompressHook(const ProcessGroup& group, at::ScalarType type) : group_(group.c10d()), type_(type) {}
  Future run(c10d::GradBucket& bucket) override;

 private:
  c10::intrusive_ptr<c10d::ProcessGroup> group_;
  at::ScalarType type_;
};

/// Casts the bucket for another hook, and its result back.
class CastWrapper : public CommHook {
 public:
  CastWrapper(std::shared_ptr<CommHook> inner, at::ScalarType type) : inner_(std::move(inner)), type_(type) {}
  Future run(c10d::GradBucket& bucket) override;
  Value state_dict() const override { return inner_->state_dict(); }
  void load_state_dict(const Value& state) override { inner_->load_state_dict(state); }

 private:
  std::shared_ptr<CommHook> inner_;
  at::ScalarType type_;
};

/// The tensor of a hook's finished future: itself, or the first of a list.
at::Tensor future_tensor(const c10::ivalue::Future& future);
/// A finished future of a tensor.
CommHook::Future completed(const at::Tensor& tensor);

/// What the Reducer calls: hands the bucket to one of our hooks, which it shares.
class HookAdapter : public c10d::CommHookInterface {
 public:
  explicit HookAdapter(std::shared_ptr<CommHook> hook) : hook_(std::move(hook)) {}
  c10::intrusive_ptr<c10::ivalue::Future> runHook(c10d::GradBucket& bucket) override { return hook_->run(bucket); }
  at::Tensor parseHookResult(const c10::IValue& result) override;

 private:
  std::shared_ptr<CommHook> hook_;
};

}  // namespace fabric::ddp

#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "strategies/ddp/bucket_hooks.h"

namespace fabric::ddp {

/// Low-rank gradient compression after Vogels, Karimireddy and Jaggi, "PowerSGD: Practical Low-Rank Gradient
/// Compression for Distributed Optimization" (2019): one power iteration per step, with error feedback and warm start.
class PowerSGDHook : public CommHook {
 public:
  PowerSGDHook(const ProcessGroup& group, const PowerSGDConfig& config);
  Future run(c10d::GradBucket& bucket) override;
  /// Step counter, the left-over errors and the thin matrices, per bucket; gradients of one rank.
  Value state_dict() const override;
  void load_state_dict(const Value& state) override;

 private:
  // What is kept for one bucket. A bucket whose layout changed starts anew.
  struct BucketState {
    std::vector<std::int64_t> shapes;
    at::Tensor error;  // as the bucket
    at::Tensor p;      // all matrices' left factors, flat
    at::Tensor q;      // right factors
  };
  struct Matrix {
    at::Tensor gradient;      // [n, m], a view of the bucket
    std::int64_t offset = 0;  // where it begins in the bucket
    at::Tensor p;             // [n, r]
    at::Tensor q;             // [m, r]
  };

  BucketState& state_of(c10d::GradBucket& bucket, const std::vector<at::Tensor>& gradients);
  std::vector<Matrix> split(BucketState& state, const std::vector<at::Tensor>& gradients,
                            std::vector<at::Tensor>& rest);
  void start_right_factors(std::vector<Matrix>& matrices, bool fresh);
  void compress(std::vector<Matrix>& matrices, BucketState& state);
  void average_rest(const std::vector<at::Tensor>& rest);
  void all_reduce(at::Tensor tensor);
  void orthogonalize(at::Tensor matrix) const;

  c10::intrusive_ptr<c10d::ProcessGroup> group_;
  AllReduceHook average_;
  PowerSGDConfig config_;
  at::Generator generator_;
  std::map<std::size_t, BucketState> buckets_;
  std::int64_t steps_ = 0;
};

std::shared_ptr<CommHook> make_powersgd(const ProcessGroup& group, const Tree& params);

}  // namespace fabric::ddp

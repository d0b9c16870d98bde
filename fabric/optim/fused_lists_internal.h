#pragma once
// Private to the fused optimizers: the lists of tensors that their kernels take, kept from step to step.

#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/GradMode.h>
#include <torch/optim/optimizer.h>

namespace fabric::optim::detail {

using Groups = std::vector<torch::optim::OptimizerParamGroup>;
using States = ska::flat_hash_map<void*, std::unique_ptr<torch::optim::OptimizerParamState>>;

/// Whether the fused kernels take this parameter with this gradient.
bool has_fused_kernel(const at::Tensor& parameter, const at::Tensor& gradient);

/// The kernels walk over storage and ignore strides, so that all tensors of a parameter must be laid out alike.
inline bool same_layout(const at::Tensor& a, const at::Tensor& b) {
  return a.sizes() == b.sizes() && a.strides() == b.strides();
}

/// `tensor` in the layout, on the device and in the dtype of `parameter`; itself when it is so already.
at::Tensor laid_out_like(const at::Tensor& parameter, const at::Tensor& tensor);

/// What every bucket holds: parameters of one group, device and dtype, in the group's order.
struct BucketBase {
  BucketBase(std::size_t group, const at::Tensor& first)
      : group(group), device(first.device()), dtype(first.scalar_type()) {}
  bool fits(const at::Tensor& parameter) const {
    return parameter.device() == device && parameter.scalar_type() == dtype;
  }
  // The kernels are called below autograd, which would have told it that the parameters changed.
  void bump_versions() const {
    for (const auto& parameter : parameters) parameter.unsafeGetTensorImpl()->bump_version();
  }

  std::size_t group;
  c10::Device device;
  c10::ScalarType dtype;
  std::vector<at::Tensor> parameters;
  std::vector<at::Tensor> gradients;
};

/// All buckets of an optimizer. Bucket adds to BucketBase: types Options and State; needs_state(options);
/// made(parameter) for a new state; joins(options, state): belongs to it; add(parameter, state); holds(index, options,
/// state): what was added at that index is still what the optimizer has.
template <class Bucket>
class Lists {
 public:
  using Options = typename Bucket::Options;
  using State = typename Bucket::State;

  /// Readies every bucket for a step; false when some parameter has no fused kernel.
  bool prepare(Groups& groups, States& states) { return refill(groups, states) || rebuild(groups, states); }

  std::vector<Bucket>& buckets() { return buckets_; }
  static Options& options(torch::optim::OptimizerParamGroup& group) { return static_cast<Options&>(group.options()); }

  /// Gradients are not kept between steps: zero_grad is to free them. The lists' own memory stays.
  void release_gradients() {
    for (auto& bucket : buckets_) bucket.gradients.clear();
  }
  void forget() {
    entries_.clear();
    buckets_.clear();
  }

 private:
  static constexpr std::size_t kNone = static_cast<std::size_t>(-1);
  struct Entry {
    at::Tensor parameter;
    std::size_t group;
    std::size_t bucket;  // kNone: it had no gradient
    std::size_t index;   // in the bucket
  };

  static const at::Tensor& gradient_of(const at::Tensor& parameter) { return parameter.unsafeGetTensorImpl()->grad(); }

  static State* state_of(const at::Tensor& parameter, States& states) {
    auto found = states.find(parameter.unsafeGetTensorImpl());
    return found == states.end() ? nullptr : static_cast<State*>(found->second.get());
  }

  // The usual case: nothing but the gradients is new since the last step. Says false as soon as anything else is.
  bool refill(Groups& groups, States& states) {
    release_gradients();
    auto entry = entries_.begin();
    for (std::size_t g = 0; g < groups.size(); ++g) {
      const Options& chosen = options(groups[g]);
      for (const auto& parameter : groups[g].params()) {
        if (entry == entries_.end() || entry->group != g || !entry->parameter.is_same(parameter)) return false;
        const at::Tensor& gradient = gradient_of(parameter);
        if (gradient.defined() != (entry->bucket != kNone)) return false;
        if (gradient.defined() && !take(*entry, gradient, chosen, states)) return false;
        ++entry;
      }
    }
    return entry == entries_.end();
  }

  bool take(const Entry& entry, const at::Tensor& gradient, const Options& chosen, States& states) {
    Bucket& bucket = buckets_[entry.bucket];
    const State* state = Bucket::needs_state(chosen) ? state_of(entry.parameter, states) : nullptr;
    if (!bucket.fits(entry.parameter) || !bucket.holds(entry.index, chosen, state)) return false;
    if (!has_fused_kernel(entry.parameter, gradient)) return false;
    if (same_layout(entry.parameter, gradient))
      bucket.gradients.push_back(gradient);
    else
      bucket.gradients.push_back(laid_out_like(entry.parameter, gradient));
    return true;
  }

  static bool all_have_fused_kernels(const Groups& groups) {
    for (const auto& group : groups)
      for (const auto& parameter : group.params())
        if (gradient_of(parameter).defined() && !has_fused_kernel(parameter, gradient_of(parameter))) return false;
    return true;
  }

  bool rebuild(Groups& groups, States& states) {
    forget();
    // Before any state is made: the plain step takes one without its tensors for damaged.
    if (!all_have_fused_kernels(groups)) return false;
    for (std::size_t g = 0; g < groups.size(); ++g) {
      const Options& chosen = options(groups[g]);
      for (const auto& parameter : groups[g].params()) {
        const at::Tensor& gradient = gradient_of(parameter);
        if (!gradient.defined()) {
          entries_.push_back({parameter, g, kNone, 0});
          continue;
        }
        add(g, parameter, chosen, states);
        buckets_[entries_.back().bucket].gradients.push_back(laid_out_like(parameter, gradient));
      }
    }
    return true;
  }

  void add(std::size_t group, const at::Tensor& parameter, const Options& chosen, States& states) {
    State* state = nullptr;
    if (Bucket::needs_state(chosen)) {
      state = state_of(parameter, states);
      if (!state) {
        auto made = Bucket::made(parameter);
        state = made.get();
        states[parameter.unsafeGetTensorImpl()] = std::move(made);
      }
    }
    std::size_t b = 0;
    while (b < buckets_.size() &&
           !(buckets_[b].group == group && buckets_[b].fits(parameter) && buckets_[b].joins(chosen, state)))
      ++b;
    if (b == buckets_.size()) buckets_.emplace_back(group, parameter, chosen, state);
    buckets_[b].add(parameter, state);
    entries_.push_back({parameter, group, b, buckets_[b].parameters.size() - 1});
  }

  std::vector<Entry> entries_;
  std::vector<Bucket> buckets_;
};

/// One step of an optimizer whose lists are of type L: `run(bucket, options)` for each bucket, or `plain()`.
template <class L, class Run, class Plain>
at::Tensor fused_step(std::shared_ptr<L>& lists, Groups& groups, States& states,
                      const torch::optim::Optimizer::LossClosure& closure, Run&& run, Plain&& plain) {
  at::Tensor loss;
  if (closure) {
    c10::AutoGradMode with_grad(true);
    loss = closure();
  }
  c10::NoGradGuard no_grad;
  if (!lists) lists = std::make_shared<L>();
  if (!lists->prepare(groups, states)) {
    plain();
    return loss;
  }
  for (auto& bucket : lists->buckets()) run(bucket, L::options(groups[bucket.group]));
  lists->release_gradients();
  return loss;
}

}  // namespace fabric::optim::detail

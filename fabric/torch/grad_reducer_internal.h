#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/distributed/c10d/logger.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

namespace fabric {

using BucketLayout = std::vector<std::vector<std::size_t>>;

/// Held while buckets are laid out: gradients that are views of a bucket are then none to autograd, so that LibTorch's
/// own zero_grad, which detaches gradients in place, works on them.
using PlainViews = at::AutoDispatchBelowADInplaceOrView;

/// LibTorch's Reducer, with its state open to the questions that find misuse.
class GradReducer : public c10d::Reducer {
 public:
  using Reducer::Reducer;

  /// The next backward pass will be reduced.
  bool armed() const { return expect_autograd_hooks_; }
  /// A backward pass began to reduce, but some parameters got no gradient.
  bool unfinished() const { return require_finalize_; }
  /// Gradients arrived that are not reduced.
  bool took_unexpected_gradients() const { return !expect_autograd_hooks_ && first_autograd_hook_called_; }
  void forget_unexpected_gradients();
  /// Throws LibTorch's error about an unfinished reduction.
  void throw_if_unfinished() { ensure_prior_reduction_finished(); }
  BucketLayout bucket_layout() const;
  /// Gives the buckets of CPU gradients other memory, `make(bytes)`, in which they and all views of them lie from now
  /// on.
  void lay_buckets_in(const std::function<at::Tensor(std::int64_t bytes)>& make);
  bool has_final_layout() const { return has_rebuilt_bucket_; }
  void keep_layout() { has_rebuilt_bucket_ = true; }
  /// The search for unused parameters reports to a logger without asking whether there is one.
  void give_logger() {
    keeps_logger_ = std::make_shared<c10d::Logger>(std::shared_ptr<c10d::Reducer>(std::shared_ptr<void>(), this));
    set_logger(keeps_logger_);
  }

 private:
  std::shared_ptr<c10d::Logger> keeps_logger_;
};

struct ReducerOptions {
  std::int64_t bucket_bytes = 0;
  std::int64_t first_bucket_bytes = 0;
  bool find_unused_parameters = false;
  bool gradient_as_bucket_view = false;
};

/// Destroys a reducer and swallows its errors: it unhooks itself from parameters that may be gone.
struct ReducerDeleter {
  void operator()(GradReducer* reducer) const noexcept;
};
using ReducerPtr = std::unique_ptr<GradReducer, ReducerDeleter>;

/// `sparse` says which parameters get sparse gradients. An empty layout: the parameters in reverse order, by size.
ReducerPtr make_reducer(const std::vector<at::Tensor>& params, const std::vector<std::string>& names,
                        const std::vector<bool>& sparse, const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                        const ReducerOptions& options, const BucketLayout& layout = {});

}  // namespace fabric

#include "fabric/torch/grad_reducer_internal.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <unordered_map>
#include <utility>

#include <fabric/base/log.h>

namespace fabric {

void GradReducer::forget_unexpected_gradients() {
  if (!took_unexpected_gradients()) return;
  first_autograd_hook_called_ = false;
  if (!static_graph_ || num_bwd_calls_ != 1) return;
  // A static graph learns from its first backward pass that is reduced, which this one was not.
  num_bwd_calls_ = 0;
  for (auto& [index, count] : numGradHooksTriggeredMap_) count = 0;
}

BucketLayout GradReducer::bucket_layout() const {
  BucketLayout layout;
  for (const auto& bucket : buckets_) layout.push_back(bucket.variable_indices);
  return layout;
}

// The storage stays, so that nobody who has a view hears of it.
void GradReducer::lay_buckets_in(const std::function<at::Tensor(std::int64_t bytes)>& make) {
  for (auto& bucket : buckets_) {
    if (!bucket.gradients.defined() || !bucket.gradients.is_cpu() || !bucket.gradients.has_storage()) continue;
    auto* storage = bucket.gradients.storage().unsafeGetStorageImpl();
    const auto bytes = storage->nbytes();
    if (bytes == 0) continue;
    auto memory = std::make_unique<at::Tensor>(make(static_cast<std::int64_t>(bytes)));
    void* data = memory->mutable_data_ptr();
    std::memcpy(data, storage->data(), bytes);
    storage->set_data_ptr_noswap(c10::DataPtr(
        data, memory.release(), [](void* context) { delete static_cast<at::Tensor*>(context); }, c10::kCPU));
  }
}

void ReducerDeleter::operator()(GradReducer* reducer) const noexcept {
  try {
    delete reducer;
  } catch (const std::exception& error) {
    log::debug(std::string("a reducer could not unhook itself: ") + error.what());
  }
}

ReducerPtr make_reducer(const std::vector<at::Tensor>& params, const std::vector<std::string>& names,
                        const std::vector<bool>& sparse, const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                        const ReducerOptions& options, const BucketLayout& layout) {
  BucketLayout buckets = layout;
  if (buckets.empty()) {
    std::vector<std::size_t> limits{static_cast<std::size_t>(options.first_bucket_bytes),
                                    static_cast<std::size_t>(options.bucket_bytes)};
    buckets = std::get<0>(c10d::compute_bucket_assignment_by_size(params, limits, sparse));
    // Gradients become ready from the last parameter to the first.
    std::reverse(buckets.begin(), buckets.end());
  }
  std::unordered_map<std::size_t, std::string> by_index;
  for (std::size_t i = 0; i < names.size(); ++i) by_index[i] = names[i];
  PlainViews plain_views;
  ReducerPtr reducer(new GradReducer(params, buckets, group, sparse, options.bucket_bytes,
                                     options.find_unused_parameters, options.gradient_as_bucket_view,
                                     std::move(by_index), options.first_bucket_bytes,
                                     /*skip_all_reduce_unused_params=*/false, /*use_python_reducer=*/false,
                                     /*bucket_bytes_cap_list=*/{}));
  if (options.find_unused_parameters) reducer->give_logger();
  return reducer;
}

}  // namespace fabric

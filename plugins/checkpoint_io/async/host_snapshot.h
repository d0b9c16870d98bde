#pragma once

#include <cstddef>
#include <unordered_set>
#include <vector>

#include <fabric/base/value.h>

namespace fabric {

/// Copies nested values into host memory that is kept and used again: the first copy allocates, later ones of a state
/// of the same shapes cost what copying the bytes costs. Copies from an accelerator go to page-locked memory, all at
/// once.
class FABRIC_API HostSnapshot {
 public:
  /// The copy; its tensors are overwritten by the next call. Tensors that cannot be copied element by element (sparse,
  /// quantized, on the meta device, without memory) and those in `settled` are passed on as they are.
  /// Tensors in storages that are `unchanging` have memory in the copy, but no content before `take_rest`.
  Value take(const Value& value, const std::unordered_set<const void*>& settled = {},
             const std::unordered_set<const void*>& unchanging = {});
  bool has_more() const { return !rest_.empty(); }
  /// May run in another thread. Returns how many of the tensors have changed since `take`, by LibTorch's count.
  std::size_t take_rest() noexcept;
  /// Of the memory that is kept.
  std::size_t bytes() const;

 private:
  struct Copy {
    at::Tensor from, to;
  };
  struct Later : Copy {
    std::int64_t version;
  };
  void copy(at::Tensor& tensor, const std::unordered_set<const void*>& unchanging);
  void copy_all() const;
  at::Tensor& buffer_for(const at::Tensor& tensor);

  std::vector<at::Tensor> buffers_;  // by the order of the tensors in the value
  std::vector<Copy> copies_;
  std::vector<Later> rest_;
  std::size_t used_ = 0;
};

}  // namespace fabric

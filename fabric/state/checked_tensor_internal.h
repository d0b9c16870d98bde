#pragma once

#include <fabric/state/sharding.h>

namespace fabric {

/// A stored tensor whose file says what its bytes must be.
class CheckedTensor : public StoredTensor {
 public:
  /// Throws CheckpointCorrupt where the box at `offsets` of this size holds other bytes than were written, as far as
  /// the format can tell; what was found right once is not looked at again.
  virtual void check(at::IntArrayRef offsets, at::IntArrayRef sizes) const = 0;
  /// All of it, compared and without a copy, over private pages of the file of its own. Undefined where it does not lie
  /// in one piece, or is so small that it is no reason to keep the file.
  virtual at::Tensor in_place() const { return {}; }
};

/// Before anything is changed: the box that `read_box` will be asked for. Does nothing for other tensors.
inline void check_box(const at::Tensor& source, at::IntArrayRef offsets, at::IntArrayRef sizes) {
  if (const auto* checked = dynamic_cast<const CheckedTensor*>(stored_in(source))) checked->check(offsets, sizes);
}
inline void check_whole(const at::Tensor& source) {
  if (stored_in(source))
    check_box(source, std::vector<std::int64_t>(static_cast<std::size_t>(source.dim()), 0), source.sizes());
}
/// All tensors of `value`.
inline void check_whole(const Value& value) {
  Value shared = value;  // copying shares the tensors
  for_each_leaf_tensor(shared, [](at::Tensor& tensor, const std::string&) { check_whole(tensor); });
}

}  // namespace fabric

#pragma once

#include <atomic>
#include <cstdint>

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>

namespace fabric::sharded {

class Unit;

/// A storage whose memory comes and goes, and which says to whom it belongs: each tensor in it (a parameter's content,
/// a view of it, what autograd saved of it) leads back to its unit, however it came about. Addresses, which are used
/// again, play no part.
class Home {
 public:
  Home() = default;
  Home(Unit* owner, c10::Device device);
  Home(Home&&) noexcept = default;
  Home& operator=(Home&&) noexcept = default;
  ~Home();

  /// Tensors from now on have this memory, a tensor of bytes; undefined: none, until there is another.
  void fill(at::Tensor memory);
  /// What it was filled with.
  at::Tensor empty();
  const c10::Storage& storage() const { return storage_; }
  /// A tensor in it, memory or not. `offset` in elements.
  at::Tensor tensor(at::ScalarType type, at::IntArrayRef sizes, at::IntArrayRef strides, std::int64_t offset) const;
  at::Tensor flat(at::ScalarType type, std::int64_t numel, std::int64_t offset) const;

 private:
  c10::Storage storage_;
};

/// Where a tensor lives.
struct Residence {
  bool is_home = false;  // in some Home
  Unit* unit = nullptr;  // null when its owner is gone
};
Residence residence_of(const at::Tensor& tensor);

}  // namespace fabric::sharded

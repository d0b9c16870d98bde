#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

// A data set of numbers, and what a loader made of it.
namespace loader_test {

using Numbers = std::vector<std::int64_t>;

struct Counting {
  std::size_t count = 8;
  std::int64_t get(std::size_t index) const { return static_cast<std::int64_t>(index); }
  std::size_t size() const { return count; }
};

inline void append(Numbers& all, const at::Tensor& batch) {
  all.insert(all.end(), batch.const_data_ptr<std::int64_t>(), batch.const_data_ptr<std::int64_t>() + batch.numel());
}

/// The numbers of the next batches, in order.
template <class Loader>
Numbers read(const Loader& loader, std::size_t batches = 1000) {
  Numbers all;
  if (batches == 0) return all;
  for (auto& batch : loader) {
    append(all, batch);
    if (--batches == 0) break;
  }
  return all;
}

}  // namespace loader_test

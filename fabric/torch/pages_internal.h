#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <new>

#include <ATen/ops/from_blob.h>
#include <c10/core/ScalarType.h>
#include <c10/util/accumulate.h>

namespace fabric {

/// A tensor in pages of its own, zero, which take memory as they are touched and go back to the system: on the heap a
/// large block that comes and goes leaves holes, and one that stays splits the room of those that come and go.
inline at::Tensor pages(at::IntArrayRef sizes, at::ScalarType type = at::kByte) {
  const auto size = static_cast<std::size_t>(c10::multiply_integers(sizes)) * c10::elementSize(type);
  void* start = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) throw std::bad_alloc();
  return at::from_blob(
      start, sizes, [size](void* memory) { munmap(memory, size); }, at::TensorOptions(type));
}

/// From here on pages are worth their system call.
inline constexpr std::int64_t kLeastPages = 256 << 10;

}  // namespace fabric

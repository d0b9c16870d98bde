#pragma once

#include <cstddef>
#include <new>

namespace fabric {

/// A class of LibTorch's that may be larger in the library than its header says here: an object with room to spare
/// behind it. The library's constructor and methods use the size that they know; code compiled here touches no member
/// behind the one whose size is in doubt. Allocated and freed by this class alone, so that no allocator is told a size
/// that is not the block's.
template <class T>
struct Roomy final : T {
  using T::T;
  static void* operator new(std::size_t size) { return ::operator new(size + kRoom); }
  static void operator delete(void* memory) { ::operator delete(memory); }

 private:
  static constexpr std::size_t kRoom = 4096;
};

}  // namespace fabric

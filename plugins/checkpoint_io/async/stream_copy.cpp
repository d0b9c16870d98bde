#include "plugins/checkpoint_io/async/stream_copy.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace fabric {

#if defined(__x86_64__)

void stream_copy(void* to, const void* from, std::size_t bytes) noexcept {
  constexpr std::size_t kLine = 64, kWorthStreaming = 16 * 1024;
  auto* target = static_cast<char*>(to);
  auto* source = static_cast<const char*>(from);
  if (bytes < kWorthStreaming) {
    std::memcpy(target, source, bytes);
    return;
  }
  const std::size_t head = (kLine - reinterpret_cast<std::uintptr_t>(target) % kLine) % kLine;
  std::memcpy(target, source, head);
  std::size_t done = head;
  for (; bytes - done >= kLine; done += kLine) {
    auto* line = reinterpret_cast<__m128i*>(target + done);
    auto* words = reinterpret_cast<const __m128i*>(source + done);
    const __m128i a = _mm_loadu_si128(words), b = _mm_loadu_si128(words + 1), c = _mm_loadu_si128(words + 2),
                  d = _mm_loadu_si128(words + 3);
    _mm_stream_si128(line, a);
    _mm_stream_si128(line + 1, b);
    _mm_stream_si128(line + 2, c);
    _mm_stream_si128(line + 3, d);
  }
  std::memcpy(target + done, source + done, bytes - done);
  _mm_sfence();  // such stores come in no order with the others
}

#else

void stream_copy(void* to, const void* from, std::size_t bytes) noexcept { std::memcpy(to, from, bytes); }

#endif

}  // namespace fabric

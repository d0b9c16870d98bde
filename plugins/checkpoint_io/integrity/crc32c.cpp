// CRC-32C, the checksum of iSCSI (RFC 3720, appendix B.4) and ext4: G. Castagnoli's polynomial, reflected.
//
// With SSE4.2 one instruction takes eight bytes. Its result is there three cycles later, and one can begin in each, so
// that three runs of bytes are done side by side and joined (as in M. Adler's crc32c.c): the register after A and B is
// that after A, moved over as many zero bytes as B has, xor that of B alone. Moving is linear, so that four tables, one
// for each byte of the register, do it. Elsewhere crc_tables.h does it. Both give the same for every split of the bytes
// into calls.
#include "plugins/checkpoint_io/integrity/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

#include "plugins/checkpoint_io/integrity/crc_tables.h"

namespace fabric::checkpoint {
namespace {

constexpr CrcTables kSumTables = make_crc_tables(0x82F63B78u);

std::uint32_t run_by_sum_tables(std::uint32_t crc, const unsigned char* bytes, std::size_t size) {
  return run_by_tables(kSumTables, crc, bytes, size);
}

#if defined(__x86_64__)

constexpr std::size_t kRun = 2048;  // a power of two; three runs lie in the first cache

/// What each bit of the register becomes.
using BitImages = std::array<std::uint32_t, 32>;

constexpr std::uint32_t moved(const BitImages& images, std::uint32_t crc) {
  std::uint32_t out = 0;
  for (std::size_t bit = 0; bit < 32; ++bit)
    if (crc >> bit & 1) out ^= images[bit];
  return out;
}

using MoveTables = std::array<std::array<std::uint32_t, 256>, 4>;

// Over kRun zero bytes: over one, doubled until it is so many.
constexpr MoveTables make_move_tables() {
  BitImages images{};
  for (std::size_t bit = 0; bit < 32; ++bit) {
    const std::uint32_t crc = 1u << bit;
    images[bit] = crc >> 8 ^ kSumTables[0][crc & 0xFF];
  }
  for (std::size_t bytes = 1; bytes < kRun; bytes *= 2) {
    BitImages twice{};
    for (std::size_t bit = 0; bit < 32; ++bit) twice[bit] = moved(images, images[bit]);
    images = twice;
  }
  MoveTables tables{};
  for (std::size_t k = 0; k < 4; ++k)
    for (std::uint32_t i = 0; i < 256; ++i) tables[k][i] = moved(images, i << 8 * k);
  return tables;
}
constexpr MoveTables kMoveTables = make_move_tables();

std::uint32_t over_a_run(std::uint32_t crc) {
  return kMoveTables[0][crc & 0xFF] ^ kMoveTables[1][crc >> 8 & 0xFF] ^ kMoveTables[2][crc >> 16 & 0xFF] ^
         kMoveTables[3][crc >> 24];
}

std::uint64_t word_at(const unsigned char* bytes) {
  std::uint64_t word;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

__attribute__((target("sse4.2"))) std::uint32_t run_by_instruction(std::uint32_t crc, const unsigned char* bytes,
                                                                   std::size_t size) {
  for (; size >= 3 * kRun; bytes += 3 * kRun, size -= 3 * kRun) {
    std::uint64_t a = crc, b = 0, c = 0;
    for (std::size_t i = 0; i < kRun; i += 8) {
      a = _mm_crc32_u64(a, word_at(bytes + i));
      b = _mm_crc32_u64(b, word_at(bytes + kRun + i));
      c = _mm_crc32_u64(c, word_at(bytes + 2 * kRun + i));
    }
    crc = over_a_run(over_a_run(static_cast<std::uint32_t>(a)) ^ static_cast<std::uint32_t>(b)) ^
          static_cast<std::uint32_t>(c);
  }
  for (; size >= 8; bytes += 8, size -= 8) crc = static_cast<std::uint32_t>(_mm_crc32_u64(crc, word_at(bytes)));
  for (; size > 0; ++bytes, --size) crc = _mm_crc32_u8(crc, *bytes);
  return crc;
}

#endif

using Run = std::uint32_t (*)(std::uint32_t, const unsigned char*, std::size_t);

Run fastest_run() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("sse4.2")) return run_by_instruction;
#endif
  return run_by_sum_tables;
}

}  // namespace

std::uint32_t crc32c(std::uint32_t before, const void* data, std::size_t size) {
  static const Run run = fastest_run();
  return ~run(~before, static_cast<const unsigned char*>(data), size);
}

std::uint32_t crc32c_by_tables(std::uint32_t before, const void* data, std::size_t size) {
  return ~run_by_sum_tables(~before, static_cast<const unsigned char*>(data), size);
}

}  // namespace fabric::checkpoint

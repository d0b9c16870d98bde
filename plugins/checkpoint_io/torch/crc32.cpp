// CRC-32 by tables ("slicing by eight": M. Kounavis and F. Berry, A Systematic Approach to Building High Performance
// Software-based CRC Generators, 2005).
#include "plugins/checkpoint_io/torch/crc32.h"

#include <array>
#include <cstring>

namespace fabric::checkpoint {
namespace {

using Tables = std::array<std::array<std::uint32_t, 256>, 8>;

// Eight tables, so that eight bytes are done at a time.
constexpr Tables make_tables() {
  Tables tables{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = value & 1 ? value >> 1 ^ 0xEDB88320u : value >> 1;
    tables[0][i] = value;
  }
  for (std::size_t k = 1; k < 8; ++k)
    for (std::size_t i = 0; i < 256; ++i) tables[k][i] = tables[k - 1][i] >> 8 ^ tables[0][tables[k - 1][i] & 0xFF];
  return tables;
}
constexpr Tables kTables = make_tables();

}  // namespace

std::uint32_t crc32(std::uint32_t before, const void* data, std::size_t size) {
  auto* bytes = static_cast<const unsigned char*>(data);
  std::uint32_t crc = ~before;
  for (; size >= 8; bytes += 8, size -= 8) {
    std::uint64_t block;
    std::memcpy(&block, bytes, 8);
    block ^= crc;
    crc = 0;
    for (std::size_t k = 0; k < 8; ++k) crc ^= kTables[7 - k][block >> 8 * k & 0xFF];
  }
  for (; size > 0; ++bytes, --size) crc = crc >> 8 ^ kTables[0][(crc ^ *bytes) & 0xFF];
  return ~crc;
}

}  // namespace fabric::checkpoint

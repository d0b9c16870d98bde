#pragma once
// Reflected CRCs of 32 bits by eight tables, eight bytes at a time ("slicing by eight": M. Kounavis and F. Berry, A
// Systematic Approach to Building High Performance Software-based CRC Generators, 2005).

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace fabric::checkpoint {

using CrcTables = std::array<std::array<std::uint32_t, 256>, 8>;

/// `polynomial`: with its bits reversed.
constexpr CrcTables make_crc_tables(std::uint32_t polynomial) {
  CrcTables tables{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = value & 1 ? value >> 1 ^ polynomial : value >> 1;
    tables[0][i] = value;
  }
  for (std::size_t k = 1; k < 8; ++k)
    for (std::size_t i = 0; i < 256; ++i) tables[k][i] = tables[k - 1][i] >> 8 ^ tables[0][tables[k - 1][i] & 0xFF];
  return tables;
}

/// The register after `bytes`; the sum is its complement, before and after.
inline std::uint32_t run_by_tables(const CrcTables& tables, std::uint32_t crc, const unsigned char* bytes,
                                   std::size_t size) {
  for (; size >= 8; bytes += 8, size -= 8) {
    std::uint64_t block;
    std::memcpy(&block, bytes, 8);
    block ^= crc;
    crc = 0;
    for (std::size_t k = 0; k < 8; ++k) crc ^= tables[7 - k][block >> 8 * k & 0xFF];
  }
  for (; size > 0; ++bytes, --size) crc = crc >> 8 ^ tables[0][(crc ^ *bytes) & 0xFF];
  return crc;
}

}  // namespace fabric::checkpoint

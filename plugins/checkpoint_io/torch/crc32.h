#pragma once

#include <cstddef>
#include <cstdint>

namespace fabric::checkpoint {

/// The checksum of zip files (CRC-32), continued from `before`.
std::uint32_t crc32(std::uint32_t before, const void* data, std::size_t size);

}  // namespace fabric::checkpoint

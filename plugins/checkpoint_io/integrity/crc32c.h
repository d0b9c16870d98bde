#pragma once

#include <cstddef>
#include <cstdint>

#include <fabric/export.h>

namespace fabric::checkpoint {

/// The checksum of tensors' bytes (CRC-32C), continued from `before`; 0 for no bytes.
FABRIC_API std::uint32_t crc32c(std::uint32_t before, const void* data, std::size_t size);
/// The same without the processor's help.
FABRIC_API std::uint32_t crc32c_by_tables(std::uint32_t before, const void* data, std::size_t size);

}  // namespace fabric::checkpoint

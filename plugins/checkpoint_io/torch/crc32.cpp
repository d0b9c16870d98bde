#include "plugins/checkpoint_io/torch/crc32.h"

#include "plugins/checkpoint_io/integrity/crc_tables.h"

namespace fabric::checkpoint {
namespace {
constexpr CrcTables kZipTables = make_crc_tables(0xEDB88320u);
}

std::uint32_t crc32(std::uint32_t before, const void* data, std::size_t size) {
  return ~run_by_tables(kZipTables, ~before, static_cast<const unsigned char*>(data), size);
}

}  // namespace fabric::checkpoint

#pragma once

#include <cstdint>

// Marks of the zip format, as PKWARE's APPNOTE.TXT gives them.
namespace fabric::checkpoint::zip {

inline constexpr std::uint32_t kLocalHeader = 0x04034b50, kCentralHeader = 0x02014b50, kEnd = 0x06054b50;
inline constexpr std::uint32_t kEnd64 = 0x06064b50, kEnd64Locator = 0x07064b50;
/// In place of a size or an offset that does not fit 32 bits: it is in the extra field kZip64Field.
inline constexpr std::uint32_t kUse64 = 0xffffffff;
inline constexpr std::uint16_t kZip64Field = 1;

}  // namespace fabric::checkpoint::zip

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <fabric/export.h>

namespace fabric::checkpoint {

inline constexpr std::size_t kSumDigits = 8;

/// A checksum as files hold it: eight lower-case hexadecimal digits.
FABRIC_API std::string sum_text(std::uint32_t sum);
/// None for anything else.
std::optional<std::uint32_t> sum_number(std::string_view digits);

/// A sealed text holds the checksum of itself: eight digits behind the first `mark`, which count as zeros. Puts the sum
/// of all from byte `from` on there; the mark must be there, with eight characters behind it.
FABRIC_API void seal(std::string& text, std::size_t from, std::string_view mark);
/// Empty where the sum is the text's; else what is wrong.
FABRIC_API std::string why_unsealed(std::string_view text, std::string_view mark);

/// "the tensor 'w' is damaged: bytes 128 to 152 of 'a.safetensors' give the checksum …"
std::string damage_text(const std::string& tensor, const std::string& file, std::uint64_t begin, std::uint64_t end,
                        std::uint32_t found, std::uint32_t written);

}  // namespace fabric::checkpoint

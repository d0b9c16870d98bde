#include "plugins/checkpoint_io/integrity/sealed_text.h"

#include "plugins/checkpoint_io/integrity/crc32c.h"

namespace fabric::checkpoint {
namespace {

std::uint32_t sum_without_digits(std::string_view text, std::size_t digits) {
  constexpr std::string_view kZeros = "00000000";
  static_assert(kZeros.size() == kSumDigits);
  auto sum = crc32c(0, text.data(), digits);
  sum = crc32c(sum, kZeros.data(), kZeros.size());
  return crc32c(sum, text.data() + digits + kSumDigits, text.size() - digits - kSumDigits);
}

}  // namespace

std::string sum_text(std::uint32_t sum) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string text(kSumDigits, '0');
  for (std::size_t i = kSumDigits; i-- > 0; sum >>= 4) text[i] = kHex[sum & 15];
  return text;
}

std::optional<std::uint32_t> sum_number(std::string_view digits) {
  if (digits.size() != kSumDigits) return std::nullopt;
  std::uint32_t sum = 0;
  for (char c : digits) {
    if (!(c >= '0' && c <= '9') && !(c >= 'a' && c <= 'f')) return std::nullopt;
    sum = sum << 4 | static_cast<std::uint32_t>(c <= '9' ? c - '0' : c - 'a' + 10);
  }
  return sum;
}

void seal(std::string& text, std::size_t from, std::string_view mark) {
  const auto digits = text.find(mark, from) + mark.size();
  const auto sum = sum_without_digits(std::string_view(text).substr(from), digits - from);
  text.replace(digits, kSumDigits, sum_text(sum));
}

std::string why_unsealed(std::string_view text, std::string_view mark) {
  const auto found = text.find(mark);
  if (found == text.npos) return "it lacks the checksum of itself";
  const auto digits = found + mark.size();
  if (text.size() - digits < kSumDigits) return "it is cut in its checksum";
  const auto written = sum_number(text.substr(digits, kSumDigits));
  if (!written) return "its checksum is not eight hexadecimal digits";
  const auto sum = sum_without_digits(text, digits);
  if (sum == *written) return {};
  return "its bytes give the checksum (crc32c) " + sum_text(sum) + " instead of " + sum_text(*written);
}

std::string damage_text(const std::string& tensor, const std::string& file, std::uint64_t begin, std::uint64_t end,
                        std::uint32_t found, std::uint32_t written) {
  return "the tensor '" + tensor.substr(0, 200) + "' is damaged: bytes " + std::to_string(begin) + " to " +
         std::to_string(end) + " of '" + file + "' give the checksum (crc32c) " + sum_text(found) + " instead of " +
         sum_text(written);
}

}  // namespace fabric::checkpoint

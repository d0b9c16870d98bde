#include "characters.h"

#include <algorithm>
#include <cstdint>
#include <iterator>

namespace {

struct KindRange {
  std::uint32_t first, last;
  std::uint8_t kind;
};
struct FoldRun {
  std::uint32_t first, count, step;
  std::int32_t add;
};
struct FoldMany {
  std::uint32_t from, to[3];
};

#include "unicode_tables.inc"

constexpr std::uint32_t kReplacement = 0xFFFD;

// A Korean syllable's letters follow from its number.
bool append_syllable(std::u32string& text, std::uint32_t c) {
  constexpr std::uint32_t kFirst = 0xAC00, kCount = 11172, kMiddles = 21, kTails = 28;
  if (c < kFirst || c - kFirst >= kCount) return false;
  std::uint32_t index = c - kFirst;
  text += static_cast<char32_t>(0x1100 + index / (kMiddles * kTails));
  text += static_cast<char32_t>(0x1161 + index / kTails % kMiddles);
  if (index % kTails > 0) text += static_cast<char32_t>(0x11A7 + index % kTails);
  return true;
}

}  // namespace

CharacterKind kind_of(char32_t c) {
  auto found = std::upper_bound(std::begin(kKinds), std::end(kKinds), c,
                                [](std::uint32_t value, const KindRange& range) { return value < range.first; });
  if (found == std::begin(kKinds) || c > (--found)->last) return CharacterKind::letter;
  return static_cast<CharacterKind>(found->kind);
}

void append_folded(std::u32string& text, char32_t c) {
  if (append_syllable(text, c)) return;
  for (const FoldMany& many : kFoldMany)
    if (many.from == c) {
      for (std::uint32_t part : many.to)
        if (part) text += static_cast<char32_t>(part);
      return;
    }
  // Runs with step 2 overlap others: the one that holds `c` is among the few that begin last at or before it.
  auto found = std::upper_bound(std::begin(kFolds), std::end(kFolds), c,
                                [](std::uint32_t value, const FoldRun& run) { return value < run.first; });
  for (int tries = 0; found != std::begin(kFolds) && tries < kOverlappingRuns; ++tries) {
    --found;
    std::uint32_t offset = c - found->first;
    if (offset % found->step == 0 && offset / found->step < found->count) {
      text += static_cast<char32_t>(static_cast<std::int64_t>(c) + found->add);
      return;
    }
  }
  text += c;
}

char32_t next_character(std::string_view utf8, std::size_t& at) {
  auto lead = static_cast<unsigned char>(utf8[at++]);
  if (lead < 0x80) return lead;
  int more = lead >= 0xF0 && lead < 0xF5 ? 3 : lead >= 0xE0 && lead < 0xF0 ? 2 : lead >= 0xC2 && lead < 0xE0 ? 1 : 0;
  if (more == 0 || at + static_cast<std::size_t>(more) > utf8.size()) return kReplacement;
  std::uint32_t c = lead & (0x3Fu >> more);
  for (int i = 0; i < more; ++i) {
    auto byte = static_cast<unsigned char>(utf8[at + static_cast<std::size_t>(i)]);
    if ((byte & 0xC0) != 0x80) return kReplacement;
    c = c << 6 | (byte & 0x3F);
  }
  constexpr std::uint32_t kSmallest[] = {0, 0x80, 0x800, 0x10000};
  if (c < kSmallest[more] || c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) return kReplacement;
  at += static_cast<std::size_t>(more);
  return c;
}

void append_utf8(std::string& text, char32_t c) {
  if (c < 0x80) {
    text += static_cast<char>(c);
  } else if (c < 0x800) {
    text += static_cast<char>(0xC0 | c >> 6);
    text += static_cast<char>(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    text += static_cast<char>(0xE0 | c >> 12);
    text += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    text += static_cast<char>(0x80 | (c & 0x3F));
  } else {
    text += static_cast<char>(0xF0 | c >> 18);
    text += static_cast<char>(0x80 | (c >> 12 & 0x3F));
    text += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    text += static_cast<char>(0x80 | (c & 0x3F));
  }
}

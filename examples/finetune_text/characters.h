#pragma once

#include <cstddef>
#include <string>
#include <string_view>

// What an uncased BERT tokenizer does with single characters.

enum class CharacterKind { dropped, space, alone, letter };

/// `dropped`: controls, combining marks and what Unicode leaves open; `alone`: punctuation and Chinese characters,
/// which are words of their own; `letter`: everything else.
CharacterKind kind_of(char32_t c);

/// Appends the character in lower case and without its accents: "É" becomes "e". One character can become up to three.
void append_folded(std::u32string& text, char32_t c);

/// Reads the character at `at` and moves `at` behind it. Bytes that are no UTF-8 become U+FFFD, one at a time.
char32_t next_character(std::string_view utf8, std::size_t& at);

void append_utf8(std::string& text, char32_t c);

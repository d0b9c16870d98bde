#pragma once

#include <cstddef>
#include <string>

// What the utilities ask about the place they write to.
namespace fabric::terminal {

bool is_terminal(int fd);
/// Whether a line that is drawn over itself appears as that: on a terminal, and on a pipe to `fabric run` on one.
bool shows_pictures(int fd);
/// Columns of the terminal, be it that of `fabric run`; 80 where there is none.
int columns(int fd);
/// Whether the locale's variables name UTF-8.
bool utf8();
/// Characters that `text` takes on screen: UTF-8 sequences count once.
std::size_t width(const std::string& text);
/// As much of the beginning of `text` as takes at most `width` characters on screen.
std::string cut(const std::string& text, std::size_t width);
/// 75 -> "01:15", 3675 -> "1:01:15".
std::string clock_text(double seconds);
/// Three significant digits: "0.0123", "45.6", "1.23e+06".
std::string short_number(double value);
/// The fewest digits that give the same number: "1.5", "2", "nan".
std::string exact_number(double value);

}  // namespace fabric::terminal

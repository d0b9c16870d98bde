#pragma once

#include <string>
#include <string_view>

namespace fabric {

/// Text of foreign origin for a terminal or a log: control bytes become escapes (\x1b, \n …), so that it moves no
/// cursor, rings no bell and forges no line. UTF-8 stays; bytes that are none become escapes too.
std::string visible(std::string_view text);
/// The same for text of several lines: newlines and tabs stay.
std::string visible_lines(std::string_view text);

}  // namespace fabric

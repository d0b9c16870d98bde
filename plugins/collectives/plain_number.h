#pragma once

#include <sstream>
#include <string>

namespace fabric::collectives {

/// "1.5", where std::to_string says "1.500000".
inline std::string plain_number(double number) {
  std::ostringstream text;
  text << number;
  return text.str();
}

}  // namespace fabric::collectives

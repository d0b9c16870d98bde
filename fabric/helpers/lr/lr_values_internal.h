#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include <fabric/base/value.h>

// Numbers as the schedulers count with them and keep them in their states.
namespace fabric::lr {

/// Stands for an initial learning rate that a group does not have.
inline constexpr double kUnset = std::numeric_limits<double>::quiet_NaN();

inline double real(std::int64_t value) { return static_cast<double>(value); }
inline Value list_of(const std::vector<double>& numbers) { return Value::List(numbers.begin(), numbers.end()); }
inline std::vector<double> numbers_of(const Value& list) {
  std::vector<double> numbers;
  for (const auto& item : list.as_list()) numbers.push_back(item.as_double());
  return numbers;
}

}  // namespace fabric::lr

#pragma once

#include <string>
#include <vector>

#include <fabric/utilities/learning_curve.h>

namespace fabric::detail {

/// One panel per series, one below the other; the points must be finite and sorted by x.
std::string curve_svg(const std::string& title, const std::vector<LearningCurve::Series>& series);

}  // namespace fabric::detail

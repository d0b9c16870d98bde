#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <fabric/export.h>

namespace fabric {

/// The name in `valid` that `given` was most likely meant to be; empty when none is near.
FABRIC_API std::string nearest_name(std::string_view given, const std::vector<std::string>& valid);

/// Names of parts are compared in lower case (ASCII).
FABRIC_API std::string lower_case(std::string text);

/// The end of an error about an unknown name: "; did you mean 'ddp'? Valid: ddp, dp". Without a near name "; valid:
/// ddp, dp"; without valid names "; there are none".
FABRIC_API std::string did_you_mean(std::string_view given, const std::vector<std::string>& valid);

}  // namespace fabric

#pragma once

#include <string>
#include <utility>
#include <vector>

#include <fabric/base/tree.h>

namespace fabric {

/// The leaves of nested settings with their paths, "a/b/0". Lists of plain values become one text; empty lists and maps
/// too. Every result is null, a bool, a number or a string.
std::vector<std::pair<std::string, Tree>> flat_hparams(const Tree& params);

}  // namespace fabric

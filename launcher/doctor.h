#pragma once

#include <string>
#include <vector>

namespace fabric {

/// `fabric doctor`: prints what is on this machine and what a run would choose, and why. Returns 0 when a run would
/// work, 1 when it would not.
int doctor(const std::vector<std::string>& words);

}  // namespace fabric

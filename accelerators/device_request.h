#pragma once

#include <vector>

#include <fabric/accelerators/accelerator.h>

namespace fabric {

/// A DeviceSpec, read.
struct DeviceRequest {
  enum class Kind { automatic, all, count, list };
  Kind kind = Kind::automatic;
  int count = 0;
  std::vector<int> indices;
};

/// Throws ConfigError for what no accelerator can mean: 0, an empty list, below -1, duplicates, no number.
DeviceRequest read_device_request(const DeviceSpec& spec);

/// Indices of devices; `present` is how many there are (at least 1), `noun` what the user calls one ("GPU"). Throws
/// ConfigError when one is not there.
std::vector<int> parse_device_indices(const DeviceSpec& spec, int present, const std::string& noun);

}  // namespace fabric

#pragma once

#include <string>
#include <vector>

#include <fabric/export.h>

namespace fabric {

/// The hosts that a SLURM host list names, in order, duplicates kept: `gpu-[08-09],n[1-3,7]`. Hosts are separated by
/// commas or white space. A bracket holds numbers and ranges `a-b`, padded with zeros to the width of `a`; a later
/// bracket runs fastest (`a[1-2]b[3-4]` is a1b3 a1b4 a2b3 a2b4). Text after a last bracket is not allowed, as in SLURM.
/// Throws ConfigError for anything else, and for more than kMaxHosts hosts.
FABRIC_API std::vector<std::string> expand_hostlist(const std::string& text);

/// The numbers of a SLURM count list: `2(x2),1` is 2 2 1. Throws ConfigError as above.
FABRIC_API std::vector<int> expand_counts(const std::string& text);

inline constexpr int kMaxHosts = 65536;

}  // namespace fabric

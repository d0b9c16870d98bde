#pragma once

#include <chrono>
#include <filesystem>

#include <fabric/export.h>

namespace fabric {

class Strategy;

/// Whether all ranks see the same files at `path` (a file or a folder). Every rank calls it. True with one rank; false
/// when the ranks name different paths, or when some do not see what rank 0 writes there within `timeout`. Throws Error
/// on every rank when no rank has the path.
FABRIC_API bool is_shared_filesystem(Strategy& strategy, const std::filesystem::path& path,
                                     std::chrono::milliseconds timeout = std::chrono::seconds(3));

}  // namespace fabric

#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

#include <fabric/export.h>

// What the control groups that this process is in allow: the limits of a container, or of a batch system's job. Both
// versions of control groups are read; the tightest limit from the process's own group up to the root counts. `root` is
// where /proc and /sys are looked for.
namespace fabric::container {

/// Processors' worth of time, 1.5 for instance; a mask of processors says nothing about it.
FABRIC_API std::optional<double> processor_quota(const std::filesystem::path& root = "/");
/// Whole processors that are worth using under the quota: rounded up, at least 1.
FABRIC_API std::optional<int> processors(const std::filesystem::path& root = "/");
/// Bytes.
FABRIC_API std::optional<std::int64_t> memory_limit(const std::filesystem::path& root = "/");

}  // namespace fabric::container

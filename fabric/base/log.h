#pragma once

#include <string_view>

#include <fabric/export.h>

namespace fabric::log {

/// Messages go to stderr as `[fabric] level: text`, with the rank once it is known. FABRIC_LOG_LEVEL (trace, debug,
/// info, warn, error, off) sets the threshold; the default is info. Thread-safe.
enum class Level { trace, debug, info, warn, error, off };

FABRIC_API void write(Level level, std::string_view text);
FABRIC_API void debug(std::string_view text);
FABRIC_API void info(std::string_view text);
FABRIC_API void warn(std::string_view text);
FABRIC_API void error(std::string_view text);

/// As info and warn, on global rank 0 only (before a Fabric has found it out: by RANK,
/// SLURM_PROCID and their like; a process that has no rank counts as rank 0).
FABRIC_API void rank_zero_info(std::string_view text);
FABRIC_API void rank_zero_warn(std::string_view text);
/// rank_zero_warn, at most once per text and process.
FABRIC_API void warn_once(std::string_view text);

FABRIC_API void set_level(Level level);
FABRIC_API Level level();
/// Tells the log which rank this process is; -1 means unknown.
FABRIC_API void set_rank(int rank);

}  // namespace fabric::log

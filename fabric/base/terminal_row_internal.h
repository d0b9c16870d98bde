#pragma once

#include <atomic>

namespace fabric {

/// A progress bar of this process stands in the last row of the terminal behind stderr. Whoever writes a line there
/// meanwhile erases that row first (kEraseRow); the bar is drawn again with its next step.
inline std::atomic<bool> progress_row_is_drawn{false};
inline constexpr const char* kEraseRow = "\r\x1b[K";

}  // namespace fabric

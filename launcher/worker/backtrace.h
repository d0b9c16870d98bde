#pragma once

#include <string>

namespace fabric {

inline constexpr int kMostFrames = 64;

/// A place in the program in words: "train_step(int)+0x1f in /home/me/train". Finds functions that are not exported,
/// too, unless the file was stripped.
std::string describe_address(void* address);

/// One numbered line for each frame of backtrace(3), from `frames[first]`. `interrupted`: a signal stopped the first of
/// them just there; the others are behind a call.
std::string describe_frames(void* const* frames, int count, int first, bool interrupted = false);

/// "std::runtime_error" out of "St13runtime_error"; the same when it is no mangled name.
std::string demangle(const char* name);

}  // namespace fabric

#pragma once

#include <string>
#include <string_view>

namespace fabric {

/// What a process whose settings are wrong ends with.
inline constexpr int kSettingsExitCode = 2;

/// Tells about a setting that is wrong, just before the process ends because of it: one line on stderr, and to `fabric
/// run` that another attempt would end the same way. Ranks above 0 under `fabric run` leave the line to the launcher.
void tell_settings_error(std::string_view program, std::string_view what) noexcept;

/// The error file, marked as an error of settings. False when it was not written.
bool write_settings_error_file(const std::string& message) noexcept;

}  // namespace fabric

#pragma once

#include <exception>
#include <string>

#include <fabric/export.h>

namespace fabric {

/// From now on this process says in the file that TORCHELASTIC_ERROR_FILE names why it ended, so that the report of
/// `fabric run` or torchrun shows it: an exception that nobody catches, with type, what() and where it was thrown; or a
/// fatal signal (SEGV, BUS, FPE, ILL, ABRT) with the stack of the thread that got it. Exit code, core dump and messages
/// stay as they are. Handlers for signals that the program has set are left alone.
///
/// With or without this call: a ConfigError that nobody catches ends the process with 2 and one line on stderr, without
/// backtrace or core, and `fabric run` does not start the job again. A terminate handler that the program has set is
/// called instead.
///
/// Every Fabric does this when it is made; programs without one may call it themselves. Calling it again does nothing.
FABRIC_API void install_error_file();

/// Writes the file for an error that was caught, by a program that is about to end because of it. The first one counts.
/// False when there is nothing to write to, the disk refuses, or an error was written before.
FABRIC_API bool write_error_file(const std::exception& error) noexcept;
/// The same in words; `backtrace` may be empty.
FABRIC_API bool write_error_file(const std::string& message, const std::string& backtrace = {}) noexcept;

}  // namespace fabric

#pragma once

#include <string>

namespace fabric {

/// "SIGTERM"; "signal 63" for one without a name.
std::string signal_name(int number);
/// How a process ended: "was killed by signal 9 (SIGKILL)", or "ended with exit code 7" where `signal` is 0.
std::string end_in_words(int code, int signal);

}  // namespace fabric

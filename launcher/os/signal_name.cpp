#include "launcher/os/signal_name.h"

#include <string.h>

namespace fabric {

std::string signal_name(int number) {
  const char* name = sigabbrev_np(number);
  return name ? std::string("SIG") + name : "signal " + std::to_string(number);
}

std::string end_in_words(int code, int signal) {
  if (signal) return "was killed by signal " + std::to_string(signal) + " (" + signal_name(signal) + ")";
  return "ended with exit code " + std::to_string(code);
}

}  // namespace fabric

#include "launcher/worker/settings_error.h"

#include <signal.h>

#include <cstdio>
#include <string>

#include <fabric/base/env_reader.h>
#include <fabric/config/parse.h>
#include <fabric/launcher/error_file.h>
#include <fabric/launcher/heartbeat.h>

namespace fabric {
namespace {

// Rank 0 tells it, and so does the launcher when rank 0 came to no such error.
bool is_left_to_launcher() {
  const std::string rank = process_env()->get_or("RANK", "");
  return has_heartbeat_listener() && !rank.empty() && rank != "0";
}

}  // namespace

void tell_settings_error(std::string_view program, std::string_view what) noexcept {
  try {
    program.remove_prefix(program.rfind('/') + 1);  // npos + 1 is 0
    std::string line = std::string(program) + (program.empty() ? "" : ": ") + std::string(what);
    for (char& letter : line)
      if (letter == '\n') letter = ' ';
    do_not_retry("a setting is wrong");
    // The launcher stops all ranks when the first of them ends: file and line are both there or neither is.
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    bool written = write_settings_error_file(line);
    if (written && is_left_to_launcher()) return;
    line += '\n';
    std::fflush(stdout);
    std::fwrite(line.data(), 1, line.size(), stderr);
  } catch (...) {  // no memory: the exit code tells
  }
}

// Of the settings, which know no launcher; here, as the launcher is told.
void detail::refuse_and_exit(const char* program, const ConfigError& error) {
  std::string what = error.what();
  if (what.find("--help") == what.npos) what += "; --help lists all settings";
  tell_settings_error(program ? program : "", what);
  std::exit(kSettingsExitCode);
}

}  // namespace fabric

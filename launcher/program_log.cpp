// The log of the program `fabric`, in place of the library's: the linker takes these functions and leaves spdlog out,
// whose loading would cost the launcher more time than all else that it does.
#include <cstdio>
#include <string>

#include <fabric/base/log.h>

#include "launcher/os/visible.h"

namespace fabric::log {

void write(Level level, std::string_view text) {
  if (level < Level::warn) return;
  std::fprintf(stderr, "fabric: %s: %s\n", level == Level::warn ? "warning" : "error", visible_lines(text).c_str());
}
void debug(std::string_view) {}
void info(std::string_view) {}
void warn(std::string_view text) { write(Level::warn, text); }
void error(std::string_view text) { write(Level::error, text); }
void rank_zero_info(std::string_view) {}
void rank_zero_warn(std::string_view text) { warn(text); }
void warn_once(std::string_view text) { warn(text); }
void set_level(Level) {}
Level level() { return Level::warn; }
void set_rank(int) {}

}  // namespace fabric::log

#include <fabric/base/log.h>

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <mutex>
#include <set>
#include <string>

#include <fabric/base/env_reader.h>

namespace fabric::log {
namespace {

std::atomic<int> own_rank{-1};

spdlog::level::level_enum to_spdlog(Level level) {
  switch (level) {
    case Level::trace:
      return spdlog::level::trace;
    case Level::debug:
      return spdlog::level::debug;
    case Level::info:
      return spdlog::level::info;
    case Level::warn:
      return spdlog::level::warn;
    case Level::error:
      return spdlog::level::err;
    default:
      return spdlog::level::off;
  }
}

// A logger of our own, not in spdlog's registry: the embedding program may use spdlog as well.
spdlog::logger& logger() {
  static auto* instance = [] {
    auto* made = new spdlog::logger("fabric", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    made->set_level(spdlog::level::trace);
    made->set_pattern("[fabric] %^%l%$: %v");
    return made;
  }();
  return *instance;
}

// What the launchers call a process's rank, for the time before a Fabric has found out.
bool is_rank_zero_by_environment() {
  for (const char* name : {"RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "JSM_NAMESPACE_RANK"})
    if (auto text = process_env()->get_or(name, ""); !text.empty()) return text == "0";
  return true;
}

Level level_from_environment() {
  const std::string text = process_env()->get_or("FABRIC_LOG_LEVEL", "");
  static constexpr const char* kNames[] = {"trace", "debug", "info", "warn", "error", "off"};
  for (int i = 0; i < 6; ++i)
    if (text == kNames[i]) return static_cast<Level>(i);
  if (!text.empty() && is_rank_zero_by_environment())
    logger().warn("FABRIC_LOG_LEVEL is '{}', which is none of trace, debug, info, warn, error, off: info is taken",
                  text);
  return Level::info;
}

bool is_rank_zero() {
  const int rank = own_rank;
  return rank >= 0 ? rank == 0 : is_rank_zero_by_environment();
}

std::atomic<Level>& threshold() {
  static std::atomic<Level> level{level_from_environment()};
  return level;
}

}  // namespace

void set_level(Level level) { threshold() = level; }
Level level() { return threshold(); }
void set_rank(int rank) { own_rank = rank; }

void write(Level at, std::string_view text) {
  if (at < threshold()) return;
  int rank = own_rank;
  if (rank < 0)
    logger().log(to_spdlog(at), "{}", text);
  else
    logger().log(to_spdlog(at), "rank {}: {}", rank, text);
}

void debug(std::string_view text) { write(Level::debug, text); }
void info(std::string_view text) { write(Level::info, text); }
void warn(std::string_view text) { write(Level::warn, text); }
void error(std::string_view text) { write(Level::error, text); }

void rank_zero_info(std::string_view text) {
  if (is_rank_zero()) info(text);
}
void rank_zero_warn(std::string_view text) {
  if (is_rank_zero()) warn(text);
}
void warn_once(std::string_view text) {
  static std::mutex mutex;
  static std::set<std::string, std::less<>> said;
  {
    std::lock_guard lock(mutex);
    if (!said.emplace(text).second) return;
  }
  rank_zero_warn(text);
}

}  // namespace fabric::log

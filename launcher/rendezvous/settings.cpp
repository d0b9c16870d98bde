#include "launcher/rendezvous/settings.h"

#include <cmath>
#include <cstdlib>
#include <map>
#include <sstream>

#include <fabric/base/error.h>
#include <fabric/base/nearest_name.h>

namespace fabric::rendezvous {
namespace {

double number(const std::string& entry, const std::string& text, double low) {
  char* end = nullptr;
  double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end || !std::isfinite(value) || value < low || value > 1e7) {
    std::ostringstream least;
    least << low;
    throw ConfigError("--rdzv-conf " + entry + ": give a number, " + least.str() + " or more");
  }
  return value;
}

bool yes_or_no(const std::string& entry, const std::string& text) {
  if (text == "1" || text == "true" || text == "True" || text == "yes") return true;
  if (text == "0" || text == "false" || text == "False" || text == "no") return false;
  throw ConfigError("--rdzv-conf " + entry + ": give true or false");
}

}  // namespace

Timing parse_timing(const std::string& conf) {
  Timing timing;
  struct Key {
    double* seconds = nullptr;
    double low = 0;
  };
  // The second group are torchrun's names for the same, and those of its own store, which have no meaning here.
  const std::map<std::string, Key> keys{{"join_timeout", {&timing.join, 0.1}},
                                        {"last_call_timeout", {&timing.last_call, 0}},
                                        {"heartbeat_interval", {&timing.heartbeat, 0.05}},
                                        {"late_join_delay", {&timing.late_join, 0}},
                                        {"replacement_timeout", {&timing.replacement, 0}},
                                        {"connect_timeout", {&timing.connect, 0.1}},
                                        {"keep_alive_interval", {&timing.heartbeat, 0.05}},
                                        {"timeout", {&timing.join, 0.1}},
                                        {"read_timeout", {&timing.connect, 0.1}},
                                        {"close_timeout", {}},
                                        {"heartbeat_timeout", {}},
                                        {"cas_backoff_max_seconds", {}},
                                        {"store_type", {}},
                                        {"use_libuv", {}},
                                        {"rank", {}}};
  std::istringstream entries(conf);
  for (std::string entry; std::getline(entries, entry, ',');) {
    if (entry.empty()) continue;
    auto equal = entry.find('=');
    auto name = entry.substr(0, equal);
    auto text = equal == std::string::npos ? "" : entry.substr(equal + 1);
    if (name == "heartbeat_misses" || name == "keep_alive_max_attempt") {
      timing.misses = static_cast<int>(number(entry, text, 1));
    } else if (name == "is_host") {
      timing.is_host = yes_or_no(entry, text);
    } else if (name == "majority") {
      timing.majority = yes_or_no(entry, text);
    } else if (auto found = keys.find(name); found == keys.end()) {
      std::vector<std::string> names{"heartbeat_misses", "is_host", "majority"};
      for (const auto& [key, ignored] : keys) names.push_back(key);
      throw ConfigError("--rdzv-conf has no '" + name + "'" + did_you_mean(name, names));
    } else if (found->second.seconds) {
      *found->second.seconds = number(entry, text, found->second.low);
    }
  }
  return timing;
}

}  // namespace fabric::rendezvous

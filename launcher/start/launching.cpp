#include <fabric/launcher/launching.h>

#include <fabric/base/error.h>

#include "fabric/base/ports_internal.h"
#include "launcher/start/function_launcher.h"
#include "launcher/start/single_thread.h"

namespace fabric {

std::unique_ptr<Launcher> make_launcher(const std::string& kind, const Launcher::Config& config,
                                        std::shared_ptr<EnvReader> env) {
  if (kind == "auto") return make_launcher(can_be_copied() ? "copy" : "popen", config, std::move(env));
  if (kind == "popen") return make_popen_launcher(config, std::move(env));
  if (kind == "copy") return make_copy_launcher(config, std::move(env));
  if (kind == "spawn") return make_spawn_launcher(config, std::move(env));
  if (kind == "fork") return make_fork_launcher(config, std::move(env));
  throw ConfigError("unknown start method '" + kind + "'; known are auto, popen, copy, spawn and fork");
}

int find_free_port() { return PortReservation().port(); }

}  // namespace fabric

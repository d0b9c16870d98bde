#pragma once

#include <fabric/launcher/launching.h>

#include "launcher/start/child.h"
#include "launcher/start/history.h"
#include "launcher/start/plan.h"

namespace fabric {

/// What spawn and fork share: one rank per child, a function to run, and its result.
class FunctionLauncher : public Launcher {
 public:
  FunctionLauncher(const Config& config, std::shared_ptr<EnvReader> env) : config_(config), env_(std::move(env)) {}
  bool needs_function() const override { return true; }
  void launch() override;
  std::string launch_function(const Function& function) override;
  int join() override { return 0; }

 protected:
  /// Throws what forbids a launch.
  virtual void check() const {}
  virtual Child start(const LaunchPlan& plan, int local_rank, const Function& function) = 0;

  std::shared_ptr<EnvReader> env() const { return env_; }

 private:
  std::string run_ranks(const Function& function);

  Config config_;
  std::shared_ptr<EnvReader> env_;
};

/// Runs the function in a started rank and writes its result. Returns the rank's exit code; an exception is printed and
/// is 1.
int run_as_rank(const Launcher::Function& function, const RankInfo& rank, int result);

std::unique_ptr<Launcher> make_popen_launcher(const Launcher::Config& config, std::shared_ptr<EnvReader> env);
std::unique_ptr<Launcher> make_copy_launcher(const Launcher::Config& config, std::shared_ptr<EnvReader> env);
std::unique_ptr<Launcher> make_spawn_launcher(const Launcher::Config& config, std::shared_ptr<EnvReader> env);
std::unique_ptr<Launcher> make_fork_launcher(const Launcher::Config& config, std::shared_ptr<EnvReader> env);

}  // namespace fabric

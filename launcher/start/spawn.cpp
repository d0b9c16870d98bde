#include "launcher/start/function_launcher.h"

namespace fabric {
namespace {

class SpawnLauncher : public FunctionLauncher {
 public:
  using FunctionLauncher::FunctionLauncher;
  std::string kind() const override { return "spawn"; }

 protected:
  Child start(const LaunchPlan& plan, int local_rank, const Function&) override {
    auto command = own_command();
    for (const auto& [name, value] : plan.variables(local_rank)) command.variables[name] = value;
    command.variables["OMP_NUM_THREADS"] = plan.threads();
    ChildOptions options{.mask = mask_, .kept = {}};
    auto result = make_pipe();
    auto outcomes = CallHistory::of_this_process().hand_over(command, options, result.write.get());
    auto child = start_program(command, options);
    child.result = std::move(result.read);
    return child;
  }

 private:
  // Taken before the launch blocks SIGPIPE.
  sigset_t mask_ = current_mask();
};

}  // namespace

std::unique_ptr<Launcher> make_spawn_launcher(const Launcher::Config& config, std::shared_ptr<EnvReader> env) {
  return std::make_unique<SpawnLauncher>(config, std::move(env));
}

}  // namespace fabric

#include "launcher/start/function_launcher.h"
#include "launcher/start/single_thread.h"

namespace fabric {
namespace {

class ForkLauncher : public FunctionLauncher {
 public:
  using FunctionLauncher::FunctionLauncher;
  std::string kind() const override { return "fork"; }

 protected:
  void check() const override { require_single_thread("fork"); }

  Child start(const LaunchPlan& plan, int local_rank, const Function& function) override {
    return start_function([&](int result) {
      for (const auto& [name, value] : plan.variables(local_rank)) env()->set(name, value);
      return run_as_rank(function, plan.rank(local_rank), result);
    });
  }
};

}  // namespace

std::unique_ptr<Launcher> make_fork_launcher(const Launcher::Config& config, std::shared_ptr<EnvReader> env) {
  return std::make_unique<ForkLauncher>(config, std::move(env));
}

}  // namespace fabric

#include <filesystem>
#include <fstream>

#include <fabric/error.h>

#include "launcher/function_launcher.h"

namespace fabric {
namespace {

/// The names of all threads but one; a process that cannot be asked has none.
std::vector<std::string> other_threads() {
  std::vector<std::string> names;
  std::error_code ignored;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task", ignored)) {
    std::string name;
    std::getline(std::ifstream(task.path() / "comm"), name);
    names.push_back(name);
  }
  if (!names.empty()) names.erase(names.begin());
  return names;
}

class ForkLauncher : public FunctionLauncher {
 public:
  using FunctionLauncher::FunctionLauncher;
  std::string kind() const override { return "fork"; }

 protected:
  void check() const override {
    auto threads = other_threads();
    if (threads.empty()) return;
    std::string names;
    for (const auto& name : threads) names += (names.empty() ? "" : ", ") + name;
    throw MisuseError("cannot fork: " + std::to_string(threads.size()) + " more threads run in this process (" + names +
                      "), and a forked child would lack them. Launch before anything starts threads, or use the start "
                      "method 'spawn' or 'popen'");
  }

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

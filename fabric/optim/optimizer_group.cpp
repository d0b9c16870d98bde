#include <fabric/optim/optimizer_group.h>

#include <map>
#include <mutex>
#include <type_traits>

#include <fabric/base/error.h>
#include <fabric/state/optimizer_fields_internal.h>

namespace fabric {
namespace {

// Calls `use` with the momentum of the group; false for optimizers without one.
template <class Group, class Use>
bool with_momentum(Group& group, Use&& use) {
  bool found = false;
  optimizer_fields::with_family(group.options(), [&]<class F>(F) {
    using Options = std::conditional_t<std::is_const_v<Group>, const typename F::Options, typename F::Options>;
    auto& options = static_cast<Options&>(group.options());
    if constexpr (optimizer_fields::kIsAdam<F>) {
      use(std::get<0>(options.betas()));
      found = true;
    } else if constexpr (requires { options.momentum(); }) {
      use(options.momentum());
      found = true;
    }
  });
  return found;
}

template <class Action>
auto for_options_with_lr(Action&& action) {
  try {
    return action();
  } catch (const c10::Error&) {
    throw MisuseError("the options of this optimizer have no learning rate that can be read and set: override get_lr " +
                      std::string("and set_lr in your class of OptimizerOptions"));
  }
}

}  // namespace

double get_lr(const torch::optim::OptimizerParamGroup& group) {
  return for_options_with_lr([&] { return group.options().get_lr(); });
}

void set_lr(torch::optim::OptimizerParamGroup& group, double lr) {
  for_options_with_lr([&] { group.options().set_lr(lr); });
}

std::optional<double> get_momentum(const torch::optim::OptimizerParamGroup& group) {
  std::optional<double> momentum;
  with_momentum(group, [&](double found) { momentum = found; });
  return momentum;
}

void set_momentum(torch::optim::OptimizerParamGroup& group, double momentum) {
  if (!with_momentum(group, [&](double& slot) { slot = momentum; }))
    throw MisuseError("this optimizer has neither momentum nor betas that could be set");
}

std::shared_ptr<std::vector<double>> shared_initial_lrs(const torch::optim::Optimizer& optimizer) {
  static std::mutex mutex;
  static std::map<const torch::optim::Optimizer*, std::weak_ptr<std::vector<double>>> lists;
  std::lock_guard lock(mutex);
  std::erase_if(lists, [](const auto& entry) { return entry.second.expired(); });
  auto& kept = lists[&optimizer];
  auto list = kept.lock();
  if (!list) kept = list = std::make_shared<std::vector<double>>();
  return list;
}

}  // namespace fabric

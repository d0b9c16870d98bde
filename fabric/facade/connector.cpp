#include "fabric/facade/connector_internal.h"

#include <algorithm>

#include <fabric/base/log.h>
#include <fabric/base/nearest_name.h>
#include <fabric/plugins/loggers/registry.h>

namespace fabric {
namespace {

class Connector {
 public:
  Connector(Fabric::Config config, Fabric::Parts parts)
      : config_(std::move(config)), parts_(std::move(parts)), env_(parts_.env ? parts_.env : process_env()) {}

  Resolved run() {
    apply_variables();
    refuse_doubles();
    if (config_.num_nodes < 1)
      throw ConfigError("num_nodes must be at least 1, given " + std::to_string(config_.num_nodes));
    choose_accelerator();
    choose_environment();
    choose_devices();
    choose_strategy();
    choose_precision();
    choose_matmul_precision();
    fill_strategy();
    make_loggers();
    return std::move(resolved_);
  }

 private:
  void decide(const std::string& what) { resolved_.decisions.push_back(what); }

  // Our own variables first, then Lightning's names for the same. An empty one is as good as none.
  std::optional<std::string> variable(const std::string& name) const {
    for (const char* prefix : {"FABRIC_", "LT_"})
      if (auto value = env_->get(prefix + name); value && !value->empty()) return value;
    return std::nullopt;
  }

  template <class T>
  void override_setting(const std::string& name, T& setting, const T& fallback, const T& given,
                        const std::string& text) {
    bool launched_by_cli = variable("CLI_USED") == "1";
    if (launched_by_cli && !(setting == fallback) && !(setting == given))
      throw ConfigError("the launcher was told " + name + "=" + text +
                        ", but the program itself sets another value. Remove one of the two");
    if (!(setting == given)) decide(name + " = " + text + ", from the environment");
    setting = given;
  }

  void apply_variables() {
    const Fabric::Config fallback;
    if (auto text = variable("ACCELERATOR"))
      override_setting("accelerator", config_.accelerator, fallback.accelerator, *text, *text);
    if (auto text = variable("STRATEGY")) {
      // Settings given beside the same name stay.
      Choice given = *text == config_.strategy.name ? config_.strategy : Choice(*text);
      override_setting("strategy", config_.strategy, fallback.strategy, given, *text);
    }
    if (auto text = variable("DEVICES"))
      override_setting("devices", config_.devices, fallback.devices, DeviceSpec(*text), *text);
    if (auto text = variable("NUM_NODES")) {
      std::string name = env_->get_or("FABRIC_NUM_NODES", "").empty() ? "LT_NUM_NODES" : "FABRIC_NUM_NODES";
      override_setting("num_nodes", config_.num_nodes, fallback.num_nodes, *env_->get_int(name, 1), *text);
    }
    if (auto text = variable("PRECISION"))
      override_setting("precision", config_.precision, fallback.precision, *text, *text);
  }

  void refuse_doubles() const {
    auto refuse = [](bool both, const char* what) {
      if (both) throw ConfigError(std::string(what) + " was given as a setting and as an object; keep one of the two");
    };
    refuse(parts_.strategy && config_.strategy.name != "auto", "strategy");
    refuse(parts_.accelerator && config_.accelerator != "auto", "accelerator");
    refuse(parts_.precision && !config_.precision.empty(), "precision");
    refuse(parts_.environment && !config_.environment.empty(), "environment");
    bool names_io = config_.checkpoint_io != Fabric::Config().checkpoint_io;
    refuse(parts_.checkpoint_io && names_io, "checkpoint_io");
    if (parts_.strategy) {
      refuse(parts_.strategy->checkpoint_io() && names_io, "checkpoint_io (the object: on the strategy)");
      refuse(!parts_.strategy->own_devices().empty() && !config_.devices.is_auto(),
             "devices (the objects: on the strategy)");
      refuse(parts_.precision && parts_.strategy->precision(), "precision (on the strategy, too)");
      refuse(parts_.checkpoint_io && parts_.strategy->checkpoint_io(), "checkpoint_io (on the strategy, too)");
      refuse(parts_.accelerator && parts_.strategy->accelerator(), "accelerator (on the strategy, too)");
    }
    if (const auto* parallel = given_parallel()) {
      refuse(parallel->cluster_environment() && (parts_.environment || !config_.environment.empty()),
             "environment (on the strategy, too)");
      refuse(parallel->has_own_group() && parts_.process_group.is_set(), "process_group (on the strategy, too)");
    }
  }

  /// The strategy object of the caller, if it is one of several processes.
  ParallelStrategy* given_parallel() const { return parts_.strategy ? parts_.strategy->parallel() : nullptr; }
  std::vector<c10::Device> own_devices() const {
    return parts_.strategy ? parts_.strategy->own_devices() : std::vector<c10::Device>{};
  }

  void choose_accelerator() {
    auto own = own_devices();
    if (parts_.accelerator) {
      accelerator_ = parts_.accelerator;
    } else if (parts_.strategy && parts_.strategy->accelerator()) {
      accelerator_ = parts_.strategy->accelerator();
      if (config_.accelerator != "auto" && make_accelerator(config_.accelerator)->name() != accelerator_->name())
        throw ConfigError("the strategy object works on accelerator " + accelerator_->name() +
                          ", but accelerator = " + config_.accelerator + " was given, too; keep one of the two");
    } else {
      bool follow_devices = config_.accelerator == "auto" && !own.empty();
      accelerator_ = make_accelerator(follow_devices ? c10::DeviceTypeName(own.front().type(), /*lower_case=*/true)
                                                     : config_.accelerator);
      if (config_.accelerator == "auto") decide("accelerator = " + accelerator_->name() + ", found");
    }
    if (!own.empty() && own.front().type() != accelerator_->device_type())
      throw ConfigError("the strategy object was made with device " + own.front().str() + ", but the accelerator is " +
                        accelerator_->name() + "; leave the accelerator out, or give it a device of that kind");
  }

  void choose_environment() {
    if (parts_.environment)
      environment_ = parts_.environment;
    else if (given_parallel() && given_parallel()->cluster_environment())
      environment_ = given_parallel()->cluster_environment();
    else if (!config_.environment.empty())
      environment_ = make_environment(config_.environment, env_);
    else
      environment_ = detect_environment(env_);
    external_ = environment_->creates_processes_externally();
    if (!external_) return mention_unused_launchers(*env_);
    decide("environment = " + environment_->name() + ", detected");
    // From here on warnings come from rank 0 alone.
    if (environment_->world_size() > 1) log::set_rank(environment_->global_rank());
  }

  void choose_devices() {
    DeviceSpec spec = config_.devices;
    // Ranks that run already say how many devices this node has in the job, unless the user does.
    if (spec.is_auto() && external_ && accelerator_->device_type() == c10::kCPU &&
        environment_->rank_info().local_world_size > 1)
      spec = DeviceSpec(environment_->rank_info().local_world_size);
    devices_ = own_devices();
    if (devices_.empty()) devices_ = accelerator_->get_parallel_devices(accelerator_->parse_devices(spec));
    if (config_.devices.is_auto()) decide("devices = " + std::to_string(devices_.size()) + " per node");
    if (external_) {
      int nodes = environment_->rank_info().num_nodes;
      if (config_.num_nodes == 1 && nodes > 1) {
        config_.num_nodes = nodes;
        decide("num_nodes = " + std::to_string(nodes) + ", from the environment");
      }
    }
  }

  bool needs_several_processes() const {
    return parts_.process_group.is_set() || config_.num_nodes > 1 || devices_.size() > 1 ||
           (external_ && environment_->world_size() > 1);
  }

  void choose_strategy() {
    auto& strategy = resolved_.strategy;
    if (parts_.strategy) {
      strategy = parts_.strategy;
      return;
    }
    auto& registry = StrategyRegistry::instance();
    Choice choice = config_.strategy;
    choice.name = lower_case(choice.name);
    if (choice.name == "auto") {
      choice.name = registry.automatic(needs_several_processes());
      decide("strategy = " + choice.name);
    }
    strategy = registry.get(choice.name, Tree(choice.params));
    auto reason = strategy->reason_against(*accelerator_);
    if (reason.empty()) return;
    auto other = registry.automatic(/*several_processes=*/true);
    log::rank_zero_warn("strategy " + choice.name + " " + reason + "; on accelerator " + accelerator_->name() + " " +
                        other + " is used instead");
    decide("strategy = " + other + ", since " + choice.name + " does not run on " + accelerator_->name());
    strategy = registry.get(other);
  }

  void choose_precision() {
    precision_ = parts_.precision ? parts_.precision : resolved_.strategy->precision();
    if (precision_) {
      if (!config_.precision.empty())
        throw ConfigError("precision was given as a setting and on the strategy object; keep one of the two");
      return;
    }
    precision_ = make_precision(config_.precision.empty() ? "32-true" : config_.precision, accelerator_->name());
  }

  void choose_matmul_precision() {
    if (!config_.float32_matmul_precision.empty())
      accelerator_->set_float32_matmul_precision(lower_case(config_.float32_matmul_precision));
  }

  void fill_strategy() {
    Strategy& strategy = *resolved_.strategy;
    strategy.claim();
    if (!strategy.accelerator()) strategy.set_accelerator(accelerator_);
    if (strategy.precision() != precision_) strategy.set_precision(precision_);
    if (!strategy.checkpoint_io())
      strategy.set_checkpoint_io(parts_.checkpoint_io ? parts_.checkpoint_io
                                                      : make_checkpoint_io(config_.checkpoint_io));
    if (strategy.own_devices().empty()) strategy.set_devices(devices_);
    ParallelStrategy* parallel = strategy.parallel();
    if (!parallel) {
      if (external_ && environment_->world_size() > 1)
        log::rank_zero_warn("strategy " + strategy.name() + " runs one process, but " + environment_->name() +
                            " started " + std::to_string(environment_->world_size()) +
                            ": each of them trains a model of its own");
      if (parts_.process_group.is_set())
        throw ConfigError("strategy " + strategy.name() + " runs one process and takes no process_group; use " +
                          StrategyRegistry::automatic(/*several_processes=*/true));
      return;
    }
    parallel->set_env_reader(env_);
    parallel->set_num_nodes(config_.num_nodes);
    if (parallel->has_own_group()) return;
    if (parts_.process_group.is_set()) {
      parallel->set_process_group(parts_.process_group);
      return;
    }
    if (external_) {
      environment_->validate_settings(static_cast<int>(devices_.size()), config_.num_nodes);
    } else {
      int per_node = static_cast<int>(devices_.size());
      environment_->set_world_size(per_node * config_.num_nodes);
      environment_->set_global_rank(environment_->node_rank() * per_node + environment_->local_rank());
    }
    parallel->set_cluster_environment(environment_);
  }

  void make_loggers() {
    resolved_.loggers = parts_.loggers;
    for (const auto& logger : parts_.loggers)
      if (!logger) throw MisuseError("a logger is null");
    for (const auto& choice : config_.loggers) resolved_.loggers.push_back(make_logger(choice, *env_));
    resolved_.callbacks = parts_.callbacks;
    for (const auto& callback : resolved_.callbacks)
      if (!callback) throw MisuseError("a callback is null");
  }

  Fabric::Config config_;
  Fabric::Parts parts_;
  std::shared_ptr<EnvReader> env_;
  std::shared_ptr<Accelerator> accelerator_;
  std::shared_ptr<ClusterEnvironment> environment_;
  std::shared_ptr<Precision> precision_;
  std::vector<c10::Device> devices_;
  bool external_ = false;
  Resolved resolved_;
};

}  // namespace

Resolved resolve(Fabric::Config config, Fabric::Parts parts) {
  return Connector(std::move(config), std::move(parts)).run();
}

}  // namespace fabric

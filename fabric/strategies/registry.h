#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <fabric/strategies/strategy.h>

namespace fabric {

/// Strategies by name. The built-in ones are there from the start; a program adds its own before it makes a Fabric.
/// Thread-safe.
class FABRIC_API StrategyRegistry {
 public:
  /// Makes a strategy from the settings given beside its name; unknown settings are a ConfigError.
  using Make = std::function<std::shared_ptr<Strategy>(const Tree& params)>;

  static StrategyRegistry& instance();
  /// `preset` are settings that go with the name ("ddp_spawn" is ddp with start_method spawn). Throws ConfigError when
  /// the name is taken, unless `override_existing`. Names are case-insensitive.
  void register_strategy(const std::string& name, Make make, std::string description = "", Tree preset = Tree::Map{},
                         bool override_existing = false);
  /// Throws ConfigError listing the names and the nearest one.
  std::shared_ptr<Strategy> get(const std::string& name, const Tree& params = Tree::Map{}) const;
  bool contains(const std::string& name) const;
  std::string description(const std::string& name) const;
  std::vector<std::string> available_strategies() const;
  /// The one that "auto" stands for.
  static std::string automatic(bool several_processes);
  void remove(const std::string& name);

 private:
  StrategyRegistry();
};

}  // namespace fabric

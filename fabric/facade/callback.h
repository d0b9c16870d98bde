#pragma once

#include <functional>
#include <map>
#include <string>

#include <fabric/base/value.h>

namespace torch::nn {
class Module;
}
namespace torch::optim {
class Optimizer;
}

namespace fabric {

class Fabric;
class Strategy;

/// Code of the user's that Fabric calls. Override the two events that Fabric fires by itself, and add handlers for the
/// events that the loop fires with `fabric.call("name", …)`.
class FABRIC_API Callback {
 public:
  using Handler = std::function<void(Fabric&, const Value::Map& arguments)>;
  virtual ~Callback() = default;
  virtual void on_after_setup(Fabric&, torch::nn::Module&) {}
  virtual void on_after_optimizer_step(Strategy&, torch::optim::Optimizer&) {}
  /// Runs `handler` whenever `fabric.call(event, …)` is called.
  Callback& on(const std::string& event, Handler handler);
  /// Does nothing when this callback has no handler for the event.
  void call(Fabric& fabric, const std::string& event, const Value::Map& arguments);

 private:
  std::map<std::string, Handler, std::less<>> handlers_;
};

}  // namespace fabric

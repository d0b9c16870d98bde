#include <fabric/facade/callback.h>

namespace fabric {

Callback& Callback::on(const std::string& event, Handler handler) {
  if (!handler) throw MisuseError("the handler for '" + event + "' is empty");
  handlers_[event] = std::move(handler);
  return *this;
}

void Callback::call(Fabric& fabric, const std::string& event, const Value::Map& arguments) {
  if (auto it = handlers_.find(event); it != handlers_.end()) it->second(fabric, arguments);
}

}  // namespace fabric

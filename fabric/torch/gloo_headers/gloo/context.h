#pragma once
// What of gloo::Context is called here. Its definition, and its layout, are inside libtorch_cpu.
#include <chrono>

namespace gloo {
class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
  void closeConnections();
};
}  // namespace gloo

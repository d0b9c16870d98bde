#include "plugins/collectives/group.h"

namespace fabric::collectives {

void Group::fail(const char* operation, const std::exception& error, std::chrono::steady_clock::time_point begin) {
  one.clear();
  health.fail(id, transport, operation, error, begin);
}

void Group::close() noexcept {
  if (health.closed()) return;
  health.close();
  one.clear();
  transport.close();
}

}  // namespace fabric::collectives

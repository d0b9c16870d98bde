#include "strategies/ddp/collective_failure.h"

#include "fabric/torch/messages_internal.h"

namespace fabric::ddp {
void throw_collective_failure(const ProcessGroup& group, const char* operation,
                              std::chrono::steady_clock::time_point begin) {
  try {
    throw;
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    if (!torch_messages::is_communication(error)) throw;
    group.report_failure(operation, error, begin);
  }
}

}  // namespace fabric::ddp

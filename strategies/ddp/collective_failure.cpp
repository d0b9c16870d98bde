#include "strategies/ddp/collective_failure.h"

#include <c10/util/Exception.h>

#include <string_view>

namespace fabric::ddp {
namespace {

// Backends throw plain exceptions whose texts alone tell where they come from.
bool is_communication(const std::exception& error) {
  if (dynamic_cast<const c10::DistError*>(&error)) return true;
  std::string_view text = error.what();
  for (std::string_view sign : {"gloo", "Gloo", "NCCL", "MPI", "imed out", "Connection closed by peer",
                                "Connection reset", "Socket", "Broken pipe", "ProcessGroup"})
    if (text.find(sign) != std::string_view::npos) return true;
  return false;
}

}  // namespace

void throw_collective_failure(const ProcessGroup& group, const char* operation,
                              std::chrono::steady_clock::time_point begin) {
  try {
    throw;
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    if (!is_communication(error)) throw;
    group.report_failure(operation, error, begin);
  }
}

}  // namespace fabric::ddp

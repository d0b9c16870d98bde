#include <fabric/base/error.h>

#include <sstream>

namespace fabric {

namespace {
std::string timeout_text(int rank, const std::string& operation, std::chrono::milliseconds waited,
                         const std::string& hint) {
  std::ostringstream text;
  text << "rank " << rank << ": " << operation << " timed out after " << waited.count() / 1000.0 << " s";
  if (!hint.empty()) text << ". " << hint;
  return text.str();
}
}  // namespace

TimeoutError::TimeoutError(int rank, std::string operation, std::chrono::milliseconds waited, const std::string& hint)
    : CollectiveError(timeout_text(rank, operation, waited, hint)),
      rank_(rank),
      operation_(std::move(operation)),
      waited_(waited) {}

}  // namespace fabric

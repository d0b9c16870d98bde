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

ErrorKind kind_of(const std::exception& error) noexcept {
  auto* ours = dynamic_cast<const Error*>(&error);
  return ours ? ours->kind() : ErrorKind::other;
}

void throw_error(ErrorKind kind, const std::string& text) {
  switch (kind) {
    case ErrorKind::config:
      throw ConfigError(text);
    case ErrorKind::misuse:
      throw MisuseError(text);
    case ErrorKind::unavailable:
      throw UnavailableError(text);
    case ErrorKind::launch:
      throw LaunchError(text);
    case ErrorKind::collective:
      throw CollectiveError(text);
    case ErrorKind::timeout:
      throw TimeoutError(text);
    case ErrorKind::mismatch:
      throw MismatchError(text);
    case ErrorKind::checkpoint:
      throw CheckpointError(text);
    case ErrorKind::checkpoint_corrupt:
      throw CheckpointCorrupt(text);
    case ErrorKind::checkpoint_key:
      throw CheckpointKeyError(text);
    case ErrorKind::data:
      throw DataError(text);
    case ErrorKind::training_spike:
      throw TrainingSpike(text);
    case ErrorKind::other:
      break;
  }
  throw Error(text);
}

}  // namespace fabric

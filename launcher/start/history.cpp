#include "launcher/start/history.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include <fabric/base/env_reader.h>
#include <fabric/base/error.h>

namespace fabric {
namespace {

// "parent's pid, descriptor of the outcomes or -1, descriptor for the result or -1"
constexpr const char* kVariable = "FABRIC_LAUNCH_HISTORY";

void write_or_throw(int fd, std::string_view bytes) {
  if (!write_all(fd, bytes))
    throw LaunchError(std::string("cannot hand earlier results to a rank: ") + std::strerror(errno));
}

template <class Number>
std::string_view bytes_of(const Number& number) {
  return {reinterpret_cast<const char*>(&number), sizeof number};
}

std::string read_all(int fd) {
  std::string bytes;
  char buffer[65536];
  // pread: all children share one file and its position.
  for (ssize_t size; (size = pread(fd, buffer, sizeof buffer, static_cast<off_t>(bytes.size()))) > 0;)
    bytes.append(buffer, size);
  return bytes;
}

std::vector<CallOutcome> parse(const std::string& bytes) {
  std::vector<CallOutcome> outcomes;
  for (std::size_t at = 0; at + 1 + sizeof(std::uint64_t) <= bytes.size();) {
    std::uint64_t size;
    std::memcpy(&size, &bytes[at + 1], sizeof size);
    outcomes.push_back({bytes[at] == 1, bytes.substr(at + 1 + sizeof size, size)});
    at += 1 + sizeof size + size;
  }
  return outcomes;
}

}  // namespace

CallHistory& CallHistory::of_this_process() {
  static CallHistory history;
  return history;
}

CallHistory::CallHistory() {
  const auto text = process_env()->get(kVariable);
  if (!text) return;
  int parent = 0, outcomes = -1, result = -1;
  bool ours = std::sscanf(text->c_str(), "%d,%d,%d", &parent, &outcomes, &result) == 3 && parent == getppid();
  process_env()->unset(kVariable);
  // Programs that a rank starts inherit the variable but not the descriptors.
  if (!ours) return;
  if (outcomes >= 0) outcomes_ = parse(read_all(Descriptor(outcomes).get()));
  if (result < 0) return;
  fcntl(result, F_SETFD, FD_CLOEXEC);
  result_ = Descriptor(result);
}

std::optional<CallOutcome> CallHistory::repeat() {
  if (repeated_ == outcomes_.size()) return std::nullopt;
  return outcomes_[repeated_++];
}

Descriptor CallHistory::take_result() { return std::move(result_); }

void CallHistory::record(CallOutcome outcome) {
  outcomes_.push_back(std::move(outcome));
  repeated_ = outcomes_.size();
}

Descriptor CallHistory::hand_over(Command& command, ChildOptions& options, int result) const {
  Descriptor file;
  if (!outcomes_.empty()) {
    file = above_stdio(memfd_create("fabric_results", MFD_CLOEXEC), "earlier results");
    for (const auto& outcome : outcomes_) {
      std::uint64_t size = outcome.bytes.size();
      char ok = outcome.ok;
      write_or_throw(file.get(), bytes_of(ok));
      write_or_throw(file.get(), bytes_of(size));
      write_or_throw(file.get(), outcome.bytes);
    }
    options.kept.push_back(file.get());
  }
  if (result >= 0) options.kept.push_back(result);
  if (file || result >= 0)
    command.variables[kVariable] =
        std::to_string(getpid()) + "," + std::to_string(file.get()) + "," + std::to_string(result);
  return file;
}

}  // namespace fabric

#include <fabric/helpers/checkpointing/interrupt_signals_internal.h>

#include <signal.h>

#include <array>
#include <atomic>

#include <fabric/base/error.h>
#include <fabric/base/nearest_name.h>

namespace fabric {
namespace {

struct Known {
  const char* name;
  int signal;
};
constexpr std::array kKnown{Known{"SIGTERM", SIGTERM}, Known{"SIGUSR1", SIGUSR1}, Known{"SIGUSR2", SIGUSR2},
                            Known{"SIGINT", SIGINT}, Known{"SIGHUP", SIGHUP}};

// All that the handler touches.
std::array<std::atomic<bool>, NSIG> g_received{};
std::array<std::atomic<int>, NSIG> g_users{};
std::array<struct sigaction, NSIG> g_before{};
static_assert(std::atomic<bool>::is_always_lock_free);

void on_signal(int signal) {
  auto number = static_cast<std::size_t>(signal);
  if (!g_received[number].exchange(true)) return;
  sigaction(signal, &g_before[number], nullptr);  // the second time: as if we were not here
  raise(signal);
}

int number_of(const std::string& name) {
  const std::string full = name.starts_with("SIG") ? name : "SIG" + name;
  for (const auto& known : kKnown)
    if (known.name == full) return known.signal;
  std::vector<std::string> valid;
  for (const auto& known : kKnown) valid.emplace_back(known.name);
  throw ConfigError("save_on_signals: '" + name + "' is no signal that can ask for a checkpoint" +
                    did_you_mean(full, valid));
}

}  // namespace

InterruptSignals::InterruptSignals(const std::vector<std::string>& names) {
  std::vector<int> numbers;
  for (const auto& name : names) numbers.push_back(number_of(name));
  for (int signal : numbers) {
    auto number = static_cast<std::size_t>(signal);
    if (g_users[number]++ == 0) {
      g_received[number] = false;
      struct sigaction action {};
      action.sa_handler = on_signal;
      action.sa_flags = SA_RESTART;
      sigemptyset(&action.sa_mask);
      sigaction(signal, &action, &g_before[number]);
    }
    signals_.push_back(signal);
  }
}

InterruptSignals::~InterruptSignals() {
  for (int signal : signals_) {
    auto number = static_cast<std::size_t>(signal);
    if (--g_users[number] == 0) sigaction(signal, &g_before[number], nullptr);
  }
}

int InterruptSignals::received() const noexcept {
  for (int signal : signals_)
    if (g_received[static_cast<std::size_t>(signal)].load(std::memory_order_relaxed)) return signal;
  return 0;
}

std::string InterruptSignals::name(int signal) {
  for (const auto& known : kKnown)
    if (known.signal == signal) return known.name;
  return "signal " + std::to_string(signal);
}

}  // namespace fabric

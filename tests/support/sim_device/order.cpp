#include "tests/support/sim_device/order.h"

#include <cstdlib>
#include <iostream>

#include <c10/util/Backtrace.h>

#include "tests/support/sim_device/memory.h"
#include "tests/support/sim_device/names.h"

namespace sim {

Order& Order::instance() {
  static auto* order = new Order;  // outlives tensors that are freed at the end of the process
  return *order;
}

Access Order::begin(Place stream, const char* op) {
  mine(stream).join(clock(kHost));
  ++counters.kernels;
  return {stream, ++mine(stream)[stream], op};
}

void Order::join(Place place, const VectorClock& clock) { mine(place).join(clock); }

void Order::host_learns(const VectorClock& clock) {
  mine(kHost).join(clock);
  if (settle_) settle_();
}

const VectorClock& Order::event_clock(Place stream) {
  mine(stream).join(clock(kHost));
  return clock(stream);
}

void Order::access(Block& block, std::size_t begin, std::size_t end, bool writes, const Access& now) {
  if (!enabled) return;
  auto conflict = block.history.record(begin, end, writes, now, clock(now.place));
  if (!conflict) return;
  const auto& other = conflict->with;
  report("not ordered: " + std::string(now.op) + (writes ? " writes " : " reads ") + describe(block, begin, end) +
         " on " + name_of(now.place) + ", which " + other.op + (conflict->with_write ? " writes" : " reads") + " on " +
         name_of(other.place) + "; let " + name_of(now.place) + " wait for an event that is recorded after " +
         other.op);
}

void Order::report(const std::string& finding) {
  Lock lock(mutex_);
  // A fault in a loop would fill the memory.
  constexpr std::size_t kKept = 1000;
  if (findings_.size() < kKept) findings_.push_back(finding);
  static const bool traces = std::getenv("SIM_BACKTRACE") != nullptr;
  if (traces) std::cerr << "sim: " << finding << "\n" << c10::get_backtrace(/*frames_to_skip=*/1) << std::endl;
}

void Order::count_wait(std::uint64_t& counter) {
  ++counter;
  static const bool traces = std::getenv("SIM_BACKTRACE_WAITS") != nullptr;
  if (traces) std::cerr << "sim: the host waits\n" << c10::get_backtrace(/*frames_to_skip=*/1) << std::endl;
}

std::vector<std::string> Order::take_findings() {
  Lock lock(mutex_);
  return std::exchange(findings_, {});
}

}  // namespace sim

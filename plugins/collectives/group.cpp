#include "plugins/collectives/group.h"

#include <algorithm>
#include <optional>

#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/graph_task.h>

#include "fabric/torch/gloo_internal.h"
#include "plugins/collectives/check.h"
#include "plugins/collectives/gloo/gloo_faults.h"
#include "plugins/collectives/waits/long_wait.h"

namespace fabric::collectives {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// False when the time was over.
bool wait_at_most(c10d::Work& work, milliseconds time) {
  try {
    work.wait(time);
    return true;
  } catch (const std::exception&) {
    if (!work.isCompleted()) return false;
  }
  work.wait();  // throws what it failed with
  return true;
}

}  // namespace

void Group::count_operation() {
  if (!lane) return;
  ++lane->begun;
  // Before it starts: its messages may be read before this thread comes to wait for it.
  faults_ = gloo_faults();
}

void Group::wait(c10d::Work& work, const char* operation, std::int64_t bytes, steady_clock::time_point begin) {
  // Work on a device is not waited for here, but by the device's stream.
  if (!board || (transport.on_device && !checked)) {
    work.wait();
    return;
  }
  constexpr milliseconds kUsual{1000};
  std::optional<LongWait> made;
  auto long_wait = [&]() -> LongWait& {
    if (!made) made.emplace(*this, operation, bytes, begin);
    return *made;
  };
  try {
    if (wait_at_most(work, kUsual)) return;
    steady_clock::time_point next_look{};
    do {
      // Gloo tells nobody else of such a message here, however far the next look is.
      if (gloo_faults() != faults_)
        throw std::runtime_error("Gloo got a message that does not fit the operation: " + last_gloo_fault());
      if (steady_clock::now() >= next_look) {
        long_wait().look();
        next_look = steady_clock::now() + long_wait().pause();
      }
    } while (!wait_at_most(work, std::min(long_wait().pause(), kUsual)));
  } catch (const Error&) {
    throw;
  } catch (const std::exception&) {
    long_wait().explain_failure();
    throw;
  }
}

void Group::watch_all_reduces() {
  watches_ = true;
  torch_gloo::on_all_reduce(*transport.cpu->c10d(),
                            [this](c10::intrusive_ptr<c10d::Work> work) { note_started(std::move(work)); });
}

void Group::note_started(c10::intrusive_ptr<c10d::Work> work) {
  if (lane) ++lane->begun;
  int pass = torch::autograd::get_current_graph_task_id();
  if (pass < 0) return;  // whoever started it outside of a backward pass waits for it
  if (pass != backward_pass_) {
    started_.clear();
    backward_pass_ = pass;
    faults_ = gloo_faults();
    torch::autograd::Engine::get_default_engine().queue_callback([this] { wait_for_started(); });
  }
  started_.push_back(std::move(work));
}

void Group::wait_for_started() {
  backward_pass_ = -1;
  constexpr const char* kOperation = "all-reduce of gradients";
  auto works = std::move(started_);
  guard(kOperation, [&](auto begin) {
    for (const auto& work : works) wait(*work, kOperation, kAnySize, begin);
  });
  // Back with its memory, so that the next pass allocates none.
  works.clear();
  started_ = std::move(works);
}

void Group::abandon(const std::string& why) {
  health.abandon(why);
  if (transport.owned && transport.cpu) transport.cpu->break_connections();
}

void Group::fail(const char* operation, const std::exception& error, steady_clock::time_point begin) {
  one.clear();
  health.fail(id, transport, operation, error, begin,
              [this](std::vector<std::string> known) { return lines_of_ranks(*this, std::move(known)); });
}

void Group::close() noexcept {
  if (health.closed()) return;
  health.close();
  one.clear();
  started_.clear();
  if (watches_) torch_gloo::on_all_reduce(*transport.cpu->c10d(), nullptr);
  lane.reset();
  board.reset();
  transport.close();
}

}  // namespace fabric::collectives

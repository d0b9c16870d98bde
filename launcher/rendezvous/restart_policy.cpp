#include "launcher/rendezvous/restart_policy.h"

#include <algorithm>

#include "launcher/os/exit_codes.h"

namespace fabric::run {
namespace {

constexpr int kRestartsWithoutProgress = 3;

}  // namespace

RestartPolicy::Decision RestartPolicy::decide(const Failure& failure) {
  if (!failure.can_retry) return {false, failure.code, ""};
  if (failure.forbids_retry) return {false, failure.code, "the worker asked not to be started again"};
  // Known only of programs that report steps.
  if (failure.step > best_step_)
    stale_ = 0;
  else if (best_step_ >= 0)
    ++stale_;
  best_step_ = std::max(best_step_, failure.step);
  if (stale_ >= kRestartsWithoutProgress)
    return {false, kNoProgress,
            std::to_string(kRestartsWithoutProgress) + " restarts in a row got no further than step " +
                std::to_string(best_step_)};
  if (charged_ >= max_restarts_) return {false, failure.code, ""};
  ++charged_;
  return {true, 0, ""};
}

}  // namespace fabric::run

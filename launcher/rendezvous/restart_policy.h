#pragma once

#include <string>

namespace fabric::run {

/// Whether a job that failed is started again: on one node, and for all nodes at once where there are several.
class RestartPolicy {
 public:
  explicit RestartPolicy(int max_restarts) : max_restarts_(max_restarts) {}
  /// What an earlier holder of the policy had counted.
  void resume(int charged, int stale, long long best_step) {
    charged_ = charged, stale_ = stale, best_step_ = best_step;
  }

  struct Failure {
    int code = 1;
    bool can_retry = true, forbids_retry = false;
    long long step = -1;  // the highest that any worker reported; -1: none
  };
  struct Decision {
    bool again = false;
    int code = 0;        // of the job when it is not started again
    std::string reason;  // in words, where the failure itself does not say it
  };
  /// Charges one restart if there is to be one.
  Decision decide(const Failure& failure);

  int charged() const { return charged_; }
  int stale() const { return stale_; }
  long long best_step() const { return best_step_; }
  int max_restarts() const { return max_restarts_; }

 private:
  int max_restarts_, charged_ = 0, stale_ = 0;
  long long best_step_ = -1;
};

}  // namespace fabric::run

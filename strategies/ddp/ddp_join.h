#pragma once

#include <memory>
#include <string>
#include <vector>

#include <fabric/strategies/strategy.h>

#include "strategies/ddp/bucket_hooks.h"

namespace fabric::ddp {

class Engine;

/// One run of `join`. Ranks that still train announce each collective before they start it; the others follow the
/// announcements and take part with zeros.
class JoinSession {
 public:
  enum Kind : std::int64_t { kEnded, kBuffers, kBucket };

  JoinSession(const ProcessGroup& group, std::vector<std::shared_ptr<Engine>> engines, JoinControl::Options options);
  ~JoinSession();

  /// Called by ranks that train, before a collective. Returns the lowest rank that trains.
  int announce(Kind kind, std::int64_t module, std::int64_t bucket);
  /// Ranks that train, as of the last announcement.
  int training() const { return training_; }
  /// What a bucket is multiplied with before it is averaged over all ranks.
  double scale() const;
  /// Follows the others until all have ended.
  void follow();
  /// The rank whose model the others take in the end; -1 when all ended at the same time.
  int longest() const { return training_before_end_ == group_.size() ? -1 : last_trainer_; }

 private:
  struct Event {
    Kind kind = kEnded;
    std::int64_t module = 0;
    std::int64_t bucket = 0;
  };
  /// Exchanges what each rank is about to do; returns what the training ranks do.
  Event exchange(const Event& own);
  void take_part(const Event& event);
  void leave() noexcept;

  ProcessGroup group_;
  std::vector<std::shared_ptr<Engine>> engines_;
  std::vector<std::shared_ptr<CommHook>> hooks_;
  JoinControl::Options options_;
  at::Tensor message_;
  int training_ = 0;
  int training_before_end_;
  int last_trainer_ = 0;
};

}  // namespace fabric::ddp

#pragma once

#include <map>
#include <string>

#include "plugins/collectives/store/store_wire.h"

namespace fabric::collectives {

/// Who may use a job's store. Knows no sockets.
class StoreMembers {
 public:
  /// The job is that of rank 0, which serves the store.
  explicit StoreMembers(wire::Greeting job) : job_(std::move(job)) { ranks_.emplace(job_.rank, job_); }
  const wire::Greeting& job() const { return job_; }
  /// Empty: welcome. Otherwise what the client is told. A rank that comes a second time, from another process, while
  /// the job is still gathering, mixes it: from then on nobody is served, since nothing tells which of the two is
  /// right.
  std::string admit(const wire::Greeting& client);
  /// Why nobody is served any more; empty: all is well.
  const std::string& mixed() const { return mixed_; }

 private:
  wire::Greeting job_;
  std::map<std::int64_t, wire::Greeting> ranks_;
  std::string mixed_;
};

/// "run id jobA", or "a job without a name".
std::string job_in_words(const std::string& job);

}  // namespace fabric::collectives

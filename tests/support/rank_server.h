#pragma once
// Ranks are forked out of a process that has done nothing yet but load the test program. Loading LibTorch and
// registering its operators takes half a second of a processor, and forking some milliseconds.
//
// The server is a start of the test program of its own, with the variables that the ranks are to have: what libraries
// read while they are loaded is what a rank's own start would have read. It runs nothing and has no threads, so a rank
// begins as if it had just been loaded. Where the server has threads (a sanitizer's, say), ranks are started anew.

#include <unistd.h>

#include <vector>

#include "tests/support/rank_process.h"

namespace ranks {

class RankServer {
 public:
  explicit RankServer(const Variables& variables);
  ~RankServer();
  RankServer(const RankServer&) = delete;
  RankServer& operator=(const RankServer&) = delete;

  /// A rank for each set of variables; waits for all, and kills what is left at the timeout.
  std::vector<Outcome> run(const std::vector<Variables>& ranks, double timeout_seconds);

 private:
  pid_t owner_ = ::getpid();
  pid_t pid_ = -1;
  int socket_ = -1;
};

/// The server whose ranks get these variables besides those of this process. Some are kept for later calls.
RankServer& rank_server(const Variables& variables);

/// In a process that was started as a server: serves until its client is gone, and returns in each rank. In any other
/// process it returns at once.
void serve_if_asked();

}  // namespace ranks

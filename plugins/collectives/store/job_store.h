#pragma once

#include <chrono>
#include <string>

#include <c10/util/intrusive_ptr.h>

#include <fabric/base/rank_info.h>

namespace c10d {
class Store;
}

namespace fabric::collectives {

/// The part of the job's key-value store that belongs to the next group of all ranks. Rank 0 serves the store at
/// main_address:main_port unless the launcher does; where that port was derived and is taken, at the first of
/// spare_ports that is not. The server lives until the process ends, so that groups can follow one another: the n-th
/// call in one rank meets the n-th in the others. Throws TimeoutError, CollectiveError, and ConfigError where another
/// job is there, or this rank a second time.
c10::intrusive_ptr<c10d::Store> open_job_store(const RankInfo& ranks, std::chrono::milliseconds timeout);

/// Whether all ranks are on this machine, so that nobody else has to reach what they listen on.
bool is_on_one_machine(const RankInfo& ranks);

/// For ranks whose launcher names no meeting point: serves a store at `address` and a port that the system chooses,
/// unless this process does so already, and returns the port. Called by rank 0, ahead of open_job_store. Throws
/// CollectiveError.
int serve_job_store(const RankInfo& ranks, const std::string& address);

/// Lets the next group connect to the store anew, since this connection hangs or broke.
void forget_job_store(const RankInfo& ranks);

/// Waits until every rank has come to `place`, at most the timeout; the TimeoutError names those that did not.
void meet(c10d::Store& store, const std::string& place, int rank, int size, std::chrono::milliseconds timeout);

/// A store of this process alone.
c10::intrusive_ptr<c10d::Store> open_private_store();

/// The part of `store` whose keys begin with `prefix`.
c10::intrusive_ptr<c10d::Store> sub_store(const std::string& prefix, const c10::intrusive_ptr<c10d::Store>& store);

}  // namespace fabric::collectives

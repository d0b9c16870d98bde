#include "plugins/collectives/mpi/mpi_transfer.h"

#include <string>
#include <thread>
#include <utility>

#include <fabric/base/error.h>

#include "plugins/collectives/rank_list.h"

namespace fabric::collectives {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

MpiTransfer::MpiTransfer(at::Tensor tensor, const char* operation, int rank, int peer, milliseconds timeout,
                         std::shared_ptr<std::atomic<bool>> failed)
    : tensor_(std::move(tensor)),
      operation_(operation),
      rank_(rank),
      peer_(peer),
      timeout_(timeout),
      failed_(std::move(failed)) {}

// MPI may still use the memory of a request that nobody waited for, so that memory is never given back.
MpiTransfer::~MpiTransfer() {
  if (request_ != MPI_REQUEST_NULL && !finished_quietly()) tensor_.unsafeReleaseTensorImpl();
}

bool MpiTransfer::done() {
  int done = 0;
  require_success(MPI_Test(&request_, &done, &status_), operation_, rank_);
  return done != 0;
}

void MpiTransfer::wait() {
  auto begin = steady_clock::now();
  for (int turn = 0; !done(); ++turn) {
    if (turn < 1000) continue;
    auto waited = std::chrono::duration_cast<milliseconds>(steady_clock::now() - begin);
    if (waited > timeout_) give_up(waited);
    if (waited > milliseconds(3)) std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

// The process must not go to MPI_Finalize then, which waits for the rank that is missing.
void MpiTransfer::give_up(milliseconds waited) {
  *failed_ = true;
  remember_mpi_failure();
  throw TimeoutError(rank_, operation_, waited,
                     (peer_ < 0 ? std::string("no rank sent anything") : list_of_ranks({peer_}) + " did not come") +
                         ": ended, stuck, or calling something else");
}

bool MpiTransfer::finished_quietly() noexcept {
  int done = 0, finalized = 0;
  MPI_Finalized(&finalized);
  return !finalized && MPI_Test(&request_, &done, &status_) == MPI_SUCCESS && done;
}

}  // namespace fabric::collectives

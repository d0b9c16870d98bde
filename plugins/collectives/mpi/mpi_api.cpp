#include "plugins/collectives/mpi/mpi_api.h"

#include <stdlib.h>

#include <algorithm>
#include <atomic>
#include <string>

#include <fabric/base/error.h>

#include "fabric/base/broken_pipe_internal.h"
#include "plugins/collectives/watchdog.h"

namespace fabric::collectives {
namespace {

using std::chrono::milliseconds;

// What the handler at the end of the process needs.
std::atomic<bool> a_call_failed = false;
std::atomic<milliseconds> longest_timeout{};
std::atomic<int> own_rank = 0;

std::string text_of(int code) {
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  return std::string(text, static_cast<std::size_t>(length));
}

// Finalising waits for the other ranks, which a process that failed must not do: it exits, and mpirun ends the job. Of
// failures elsewhere than in MPI nothing is known here, so the wait is watched.
void finalize_at_exit(int status, void*) {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized || status != 0 || a_call_failed) return;
  Watched watched(own_rank);
  Watched::Call call(watched, "leaving the MPI job", longest_timeout.load());
  MPI_Finalize();
}

}  // namespace

void require_success(int code, const char* operation, int rank) {
  if (code == MPI_SUCCESS) return;
  a_call_failed = true;
  throw CollectiveError("rank " + std::to_string(rank) + ": " + operation + " failed in MPI: " + text_of(code));
}

void remember_mpi_failure() { a_call_failed = true; }

void initialise_mpi(int rank, milliseconds timeout) {
  own_rank = rank;
  longest_timeout = std::max(longest_timeout.load(), timeout);
  int finalized = 0, initialised = 0;
  MPI_Finalized(&finalized);
  if (finalized)
    throw MisuseError(
        "MPI was finalised already, and it cannot be initialised twice. Make the process group before "
        "MPI_Finalize, and shut it down before as well");
  MPI_Initialized(&initialised);
  if (initialised) return;
  int provided = 0;
  IgnoreBrokenPipe in_its_threads;
  require_success(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided), "initialising MPI", rank);
  on_exit(finalize_at_exit, nullptr);
}

}  // namespace fabric::collectives

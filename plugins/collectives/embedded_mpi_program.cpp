// A program that owns MPI and a communicator, and lends that to a process group.
#include <mpi.h>

#include <torch/torch.h>

#include <iostream>

#include <fabric/plugins/collectives/process_group.h>

namespace {

int failures = 0;
void expect(bool condition, const char* what) {
  if (condition) return;
  std::cerr << "failed: " << what << std::endl;
  ++failures;
}

}  // namespace

int main(int argc, char** argv) {
  int provided = 0, rank = 0, size = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  // All but rank 0 train, in reverse order.
  MPI_Comm workers;
  MPI_Comm_split(MPI_COMM_WORLD, rank == 0 ? MPI_UNDEFINED : 1, size - rank, &workers);
  if (rank != 0) {
    auto group = fabric::ProcessGroup::from_mpi_comm({.timeout_seconds = 20}, &workers);
    expect(group.backend() == "mpi" && group.size() == size - 1 && group.rank() == size - 1 - rank,
           "the place in the communicator");
    auto sum = group.all_reduce(torch::full({3}, double(rank)), fabric::ReduceOp::sum);
    expect(sum[0].item<double>() == size * (size - 1) / 2.0, "the sum");
    group.shutdown();
    int still = 0;
    expect(MPI_Allreduce(MPI_IN_PLACE, &still, 1, MPI_INT, MPI_SUM, workers) == MPI_SUCCESS,
           "the caller's communicator lives on");
    MPI_Comm_free(&workers);
  } else {
    try {
      fabric::ProcessGroup::from_mpi_comm({}, &workers);
      expect(false, "MPI_COMM_NULL is refused");
    } catch (const fabric::MisuseError&) {
    }
  }
  int finalized = 1;
  MPI_Finalized(&finalized);
  expect(!finalized, "MPI is still the caller's");
  MPI_Finalize();
  return failures == 0 ? 0 : 1;
}

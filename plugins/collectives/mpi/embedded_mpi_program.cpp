// A program that owns MPI and communicators, and lends them to process groups and to Fabrics over these.
#include <mpi.h>

#include <torch/torch.h>

#include <iostream>
#include <sstream>

#include <fabric/fabric.h>

namespace {

int failures = 0;
void expect(bool condition, const char* what) {
  if (condition) return;
  std::cerr << "failed: " << what << std::endl;
  ++failures;
}

std::string printed_by(const fabric::Fabric& fabric, const char* text) {
  std::ostringstream captured;
  auto* before = std::cout.rdbuf(captured.rdbuf());
  fabric.print(text);
  std::cout.rdbuf(before);
  return captured.str();
}

// A Fabric over a group that was given: it takes its place from there, starts nobody, and leaves the group as it is.
void train_over(const fabric::ProcessGroup& group) {
  fabric::Fabric fabric({.accelerator = "cpu", .strategy = "ddp"}, {.process_group = group});
  fabric.launch();
  expect(fabric.world_size() == group.size() && fabric.global_rank() == group.rank(), "the Fabric's rank");
  // All ranks are on this machine.
  expect(fabric.local_rank() == group.rank() && fabric.node_rank() == 0, "the Fabric's place on its machine");
  expect(fabric.strategy()->process_group().backend() == "mpi", "the Fabric's group");
  auto mine = printed_by(fabric, "hello");
  expect(mine == (group.rank() == 0 ? "hello\n" : ""), "what a rank prints");

  torch::manual_seed(group.rank());  // ranks start apart: setup must bring them together
  auto [model, optimizer] =
      fabric.setup(torch::nn::Linear(3, 1), [](auto parameters) { return torch::optim::SGD(parameters, 0.1); });
  for (int step = 0; step < 3; ++step) {
    optimizer.zero_grad();
    fabric.backward(model(torch::full({2, 3}, group.rank() + 1.0)).sum());
    // Rank r's gradient is 2 (r + 1) everywhere.
    expect(torch::allclose(model->weight.grad(), torch::full({1, 3}, group.size() + 1.0)), "the mean gradient");
    optimizer.step();
  }
  for (const auto& weight : group.all_gather(model->weight))
    expect(torch::equal(weight, model->weight), "the ranks' weights");
}

// The machine's ranks but for rank 0, in reverse order.
void train_together(MPI_Comm workers, int rank, int size) {
  auto group = fabric::ProcessGroup::from_mpi_comm({.timeout_seconds = 20}, &workers);
  expect(group.backend() == "mpi" && group.size() == size - 1 && group.rank() == size - 1 - rank,
         "the place in the communicator");
  auto sum = group.all_reduce(torch::full({3}, double(rank)), fabric::ReduceOp::sum);
  expect(sum[0].item<double>() == size * (size - 1) / 2.0, "the sum");
  for (int turn = 0; turn < 2; ++turn) train_over(group);
  expect(group.all(true), "the group after its Fabrics");
  group.shutdown();
  int still = 0;
  expect(MPI_Allreduce(MPI_IN_PLACE, &still, 1, MPI_INT, MPI_SUM, workers) == MPI_SUCCESS,
         "the caller's communicator lives on");
}

void train_alone() {
  MPI_Comm self = MPI_COMM_SELF;
  auto group = fabric::ProcessGroup::from_mpi_comm({.timeout_seconds = 20}, &self);
  expect(group.backend() == "mpi" && group.size() == 1 && group.rank() == 0, "the place alone");
  train_over(group);
}

}  // namespace

int main(int argc, char** argv) {
  int provided = 0, rank = 0, size = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  MPI_Comm workers;
  MPI_Comm_split(MPI_COMM_WORLD, rank == 0 ? MPI_UNDEFINED : 1, size - rank, &workers);
  if (rank != 0) {
    train_together(workers, rank, size);
    MPI_Comm_free(&workers);
  } else {
    try {
      fabric::ProcessGroup::from_mpi_comm({}, &workers);
      expect(false, "MPI_COMM_NULL is refused");
    } catch (const fabric::MisuseError&) {
    }
    train_alone();
  }
  int finalized = 1;
  MPI_Finalized(&finalized);
  expect(!finalized, "MPI is still the caller's");
  MPI_Finalize();
  return failures == 0 ? 0 : 1;
}

// One of two ranks on bare LibTorch: store, Gloo, barrier. Started twice by bench_launch. With the argument `load` it
// ends when LibTorch is loaded.
#include <cstdio>
#include <cstdlib>

#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

int main(int argc, char**) {
  if (argc > 1) std::_Exit(0);
  int rank = std::atoi(std::getenv("RANK"));
  c10d::TCPStoreOptions options;
  options.port = static_cast<std::uint16_t>(std::atoi(std::getenv("MASTER_PORT")));
  options.isServer = rank == 0;
  options.numWorkers = 2;
  auto store = c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options);
  auto gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(
      store, rank, 2, c10d::ProcessGroupGloo::Options::create_default(std::chrono::seconds(30)));
  gloo->barrier()->wait();
  if (rank == 0) {
    std::puts("ready");
    std::fflush(stdout);
  }
  gloo->barrier()->wait();
  std::_Exit(0);
}

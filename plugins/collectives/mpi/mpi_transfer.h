#pragma once

#include <atomic>
#include <chrono>
#include <memory>

#include <ATen/core/Tensor.h>

#include "plugins/collectives/communicator/communicator.h"
#include "plugins/collectives/mpi/mpi_api.h"

namespace fabric::collectives {

/// A request of MPI. Outlives its communicator where the caller keeps it longer.
class MpiTransfer : public PendingTransfer {
 public:
  /// `peer` -1: any. `failed` is set when the wait fails.
  MpiTransfer(at::Tensor tensor, const char* operation, int rank, int peer, std::chrono::milliseconds timeout,
              std::shared_ptr<std::atomic<bool>> failed);
  ~MpiTransfer() override;
  bool done() override;
  void wait() override;
  int source() const override { return status_.MPI_SOURCE; }
  MPI_Request* request() { return &request_; }

 private:
  [[noreturn]] void give_up(std::chrono::milliseconds waited);
  bool finished_quietly() noexcept;

  at::Tensor tensor_;
  const char* operation_;
  int rank_;
  int peer_;
  std::chrono::milliseconds timeout_;
  std::shared_ptr<std::atomic<bool>> failed_;
  MPI_Request request_ = MPI_REQUEST_NULL;
  MPI_Status status_{};
};

}  // namespace fabric::collectives

#pragma once

#include <cstdint>

#include <c10/core/ScalarType.h>

#include "plugins/collectives/communicator/communicator.h"
#include "plugins/collectives/mpi/mpi_api.h"

namespace fabric::collectives {

/// MPI's type of one item; 16-bit floats, which it does not know, travel as integers. Throws MisuseError for what
/// cannot be reduced.
MPI_Datatype mpi_type_of(at::ScalarType type);
/// MPI's operation, of ours for 16-bit floats. AVG adds. Throws MisuseError where there is none.
MPI_Op mpi_op_of(Communicator::Op op, at::ScalarType type);

/// One item that stands for `bytes` bytes, however many: MPI counts in int.
class MpiBlock {
 public:
  MpiBlock(std::int64_t bytes, std::int64_t most);
  ~MpiBlock();
  MpiBlock(const MpiBlock&) = delete;
  MpiBlock& operator=(const MpiBlock&) = delete;
  int count() const { return count_; }
  MPI_Datatype type() const { return type_; }

 private:
  int count_ = 0;
  MPI_Datatype type_ = MPI_BYTE;
  bool made_ = false;
};

}  // namespace fabric::collectives

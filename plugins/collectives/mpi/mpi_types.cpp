#include "plugins/collectives/mpi/mpi_types.h"

#include <array>
#include <string>

#include <fabric/base/error.h>

#include "plugins/collectives/communicator/local_reduction.h"

namespace fabric::collectives {
namespace {

template <at::ScalarType type, ReduceType op>
void reduce_by_mpi(void* in, void* inout, int* count, MPI_Datatype*) {
  reduce_into(in, inout, *count, type, op);
}

template <at::ScalarType type>
MPI_Op half_op(Communicator::Op op) {
  using Op = Communicator::Op;
  static const std::array<MPI_Op, 4> kOps = [] {
    std::array<MPI_Op, 4> ops;
    MPI_Op_create(reduce_by_mpi<type, Op::SUM>, 1, &ops[0]);
    MPI_Op_create(reduce_by_mpi<type, Op::PRODUCT>, 1, &ops[1]);
    MPI_Op_create(reduce_by_mpi<type, Op::MIN>, 1, &ops[2]);
    MPI_Op_create(reduce_by_mpi<type, Op::MAX>, 1, &ops[3]);
    return ops;
  }();
  switch (op) {
    case Op::SUM:
      return kOps[0];
    case Op::PRODUCT:
      return kOps[1];
    case Op::MIN:
      return kOps[2];
    default:
      return kOps[3];
  }
}

MPI_Op plain_op(Communicator::Op op, bool logical) {
  using Op = Communicator::Op;
  switch (op) {
    case Op::SUM:
      return logical ? MPI_MAX : MPI_SUM;
    case Op::PRODUCT:
      return logical ? MPI_MIN : MPI_PROD;
    case Op::MIN:
      return MPI_MIN;
    case Op::MAX:
      return MPI_MAX;
    case Op::BAND:
      return MPI_BAND;
    case Op::BOR:
      return MPI_BOR;
    default:
      return MPI_BXOR;
  }
}

}  // namespace

MPI_Datatype mpi_type_of(at::ScalarType type) {
  switch (type) {
    case at::kByte:
    case at::kBool:
      return MPI_UINT8_T;
    case at::kChar:
      return MPI_INT8_T;
    case at::kShort:
      return MPI_INT16_T;
    case at::kInt:
      return MPI_INT32_T;
    case at::kLong:
      return MPI_INT64_T;
    case at::kUInt16:
    case at::kHalf:
    case at::kBFloat16:
      return MPI_UINT16_T;
    case at::kUInt32:
      return MPI_UINT32_T;
    case at::kUInt64:
      return MPI_UINT64_T;
    case at::kFloat:
      return MPI_FLOAT;
    case at::kDouble:
      return MPI_DOUBLE;
    default:
      throw MisuseError(std::string("MPI cannot reduce tensors of type ") + c10::toString(type) +
                        ". Convert them to float first");
  }
}

// MPI knows no mean: it adds, and the caller divides. A logical value's truncated mean is 1 where all are.
MPI_Op mpi_op_of(Communicator::Op op, at::ScalarType type) {
  require_reducible(type, op);
  if (op == Communicator::Op::AVG) op = type == at::kBool ? Communicator::Op::MIN : Communicator::Op::SUM;
  if (type == at::kHalf) return half_op<at::kHalf>(op);
  if (type == at::kBFloat16) return half_op<at::kBFloat16>(op);
  return plain_op(op, type == at::kBool);
}

MpiBlock::MpiBlock(std::int64_t bytes, std::int64_t most) {
  if (bytes <= most) {
    count_ = static_cast<int>(bytes);
    return;
  }
  auto whole = static_cast<int>(bytes / most), rest = static_cast<int>(bytes % most);
  MPI_Datatype piece;
  MPI_Type_contiguous(static_cast<int>(most), MPI_BYTE, &piece);
  int lengths[2] = {whole, rest};
  MPI_Aint places[2] = {0, static_cast<MPI_Aint>(whole) * most};
  MPI_Datatype types[2] = {piece, MPI_BYTE};
  MPI_Type_create_struct(2, lengths, places, types, &type_);
  MPI_Type_commit(&type_);
  MPI_Type_free(&piece);
  count_ = 1;
  made_ = true;
}

MpiBlock::~MpiBlock() {
  if (made_) MPI_Type_free(&type_);
}

}  // namespace fabric::collectives

#include "plugins/collectives/reducible.h"

#include <ATen/ops/view_as_real.h>

namespace fabric::collectives {
namespace {

using Type = c10d::ReduceOp::RedOpType;

Type native(ReduceOp op) {
  switch (op) {
    case ReduceOp::mean:
      return Type::AVG;
    case ReduceOp::sum:
      return Type::SUM;
    case ReduceOp::min:
      return Type::MIN;
    case ReduceOp::max:
      return Type::MAX;
    case ReduceOp::product:
      return Type::PRODUCT;
  }
  return Type::SUM;
}

[[noreturn]] void refuse(const char* operation, const at::Tensor& tensor, const std::string& what,
                         const std::string& advice) {
  throw MisuseError(std::string(operation) + " cannot form " + what + " of " + c10::toString(tensor.scalar_type()) +
                    " tensors. " + advice);
}

// A logical value as 0 or 1: "or" is the maximum, "and" the minimum. The truncated mean is 1 where all are.
Type logical(ReduceOp op) { return op == ReduceOp::sum || op == ReduceOp::max ? Type::MAX : Type::MIN; }

// The nearest type that every backend reduces.
at::ScalarType carried_as(const at::Tensor& tensor, ReduceOp op, const char* operation) {
  switch (tensor.scalar_type()) {
    case at::kShort:
    case at::kUInt16:
      return at::kInt;
    case at::kUInt32:
      return at::kLong;
    case at::kUInt64:
      // Sums and products of the two agree bit by bit; the order of large values does not.
      if (op == ReduceOp::min || op == ReduceOp::max || op == ReduceOp::mean)
        refuse(operation, tensor, "a minimum, maximum or mean", "Convert to int64 or double first");
      return at::kLong;
    case at::kFloat8_e5m2:
    case at::kFloat8_e4m3fn:
    case at::kFloat8_e5m2fnuz:
    case at::kFloat8_e4m3fnuz:
      return at::kFloat;
    case at::kByte:
    case at::kChar:
    case at::kInt:
    case at::kLong:
    case at::kHalf:
    case at::kBFloat16:
    case at::kFloat:
    case at::kDouble:
      return tensor.scalar_type();
    default:
      refuse(operation, tensor, "a reduction", "Convert the tensor to a float or integer type first");
  }
}

}  // namespace

Reducible make_reducible(const Group& group, const at::Tensor& tensor, ReduceOp op, const char* operation) {
  Reducible made;
  made.buffer = group.needs_staging(tensor) ? tensor.cpu() : tensor;
  if (!made.buffer.is_contiguous()) made.buffer = made.buffer.contiguous();
  if (tensor.is_complex()) {
    if (op != ReduceOp::sum && op != ReduceOp::mean)
      refuse(operation, tensor, "a minimum, maximum or product", "Sum and mean are there for complex types");
    made.buffer = at::view_as_real(made.buffer.resolve_conj());
  }
  if (group.mpi && made.buffer.is_cpu() && !at::isFloat8Type(made.buffer.scalar_type())) {
    made.op = native(op);
    return made;
  }
  if (made.buffer.scalar_type() == at::kBool) {
    made.buffer = made.buffer.view(at::kByte);
    made.op = logical(op);
    return made;
  }
  made.buffer = made.buffer.to(carried_as(made.buffer, op, operation));
  made.divide = op == ReduceOp::mean;
  made.op = made.divide ? Type::SUM : native(op);
  if (made.divide && group.on_device && !made.buffer.is_cpu() && made.buffer.is_floating_point()) {
    made.divide = false;
    made.op = Type::AVG;
  }
  return made;
}

void Reducible::store_in(at::Tensor& target, int size) const {
  at::Tensor result = buffer;
  if (divide) {
    if (result.is_floating_point())
      result.div_(size);
    else
      result.div_(size, "trunc");
  }
  if (result.data_ptr() == target.data_ptr() && result.nbytes() == target.nbytes() && target.is_contiguous()) return;
  if (target.is_complex())
    at::view_as_real(target).copy_(result);
  else
    target.copy_(result);
}

}  // namespace fabric::collectives

#include "plugins/collectives/reducible.h"

#include <ATen/ops/view_as_complex.h>
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

// The next type that holds all values of this one; undefined where there is none.
at::ScalarType wider(at::ScalarType type) {
  switch (type) {
    case at::kByte:
    case at::kChar:
    case at::kShort:
    case at::kUInt16:
      return at::kInt;
    case at::kInt:
    case at::kUInt32:
    case at::kUInt64:  // whose sums and products agree bit by bit
      return at::kLong;
    case at::kFloat8_e5m2:
    case at::kFloat8_e4m3fn:
    case at::kFloat8_e5m2fnuz:
    case at::kFloat8_e4m3fnuz:
    case at::kHalf:
    case at::kBFloat16:
      return at::kFloat;
    case at::kFloat:
      return at::kDouble;
    default:
      return at::ScalarType::Undefined;
  }
}

// The nearest type that the backend reduces.
at::ScalarType carried_as(const CollectiveBackend& backend, const at::Tensor& tensor, ReduceOp op,
                          const char* operation) {
  // The order of large values differs.
  if (tensor.scalar_type() == at::kUInt64 && op != ReduceOp::sum && op != ReduceOp::product)
    refuse(operation, tensor, "a minimum, maximum or mean", "Convert to int64 or double first");
  for (auto type = wider(tensor.scalar_type()); type != at::ScalarType::Undefined; type = wider(type))
    if (backend.reduces(type, op)) return type;
  refuse(operation, tensor, "this reduction",
         "Convert the tensor to another type first; the backend is " + backend.describe());
}

}  // namespace

Reducible make_reducible(const Group& group, const at::Tensor& tensor, ReduceOp op, const char* operation) {
  Reducible made;
  made.buffer = group.transport.needs_staging(tensor) ? tensor.cpu() : tensor;
  if (!made.buffer.is_contiguous()) made.buffer = made.buffer.contiguous();
  if (tensor.is_complex()) {
    if (op != ReduceOp::sum && op != ReduceOp::mean)
      refuse(operation, tensor, "a minimum, maximum or product", "Sum and mean are there for complex types");
    made.buffer = at::view_as_real(made.buffer.resolve_conj());
  }
  const auto& backend = group.transport.of(made.buffer.device());
  bool natively = backend.reduces(made.buffer.scalar_type(), op);
  if (made.buffer.scalar_type() == at::kBool && !(natively && backend.divides(at::kBool))) {
    made.buffer = made.buffer.view(at::kByte);
    made.op = logical(op);
    return made;
  }
  if (!natively) made.buffer = made.buffer.to(carried_as(backend, made.buffer, op, operation));
  made.divide = op == ReduceOp::mean && !backend.divides(made.buffer.scalar_type());
  made.op = made.divide ? Type::SUM : native(op);
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
    target.copy_(at::view_as_complex(result.contiguous()));  // `target` may be a conjugate, which has no real view
  else
    target.copy_(result);
}

}  // namespace fabric::collectives

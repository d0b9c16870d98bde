#pragma once

#include <c10/core/ScalarType.h>

#include <fabric/base/scope.h>

namespace fabric {

/// Makes `dtype` the dtype of floating tensors that are made without one, until the scope ends. It is a setting of the
/// whole process: LibTorch knows no other.
Scope default_dtype_scope(c10::ScalarType dtype);

}  // namespace fabric

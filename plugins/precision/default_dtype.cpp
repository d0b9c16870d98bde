#include "plugins/precision/default_dtype.h"

#include <c10/core/DefaultDtype.h>
#include <c10/core/ScalarTypeToTypeMeta.h>

namespace fabric {

Scope default_dtype_scope(c10::ScalarType dtype) {
  auto before = c10::get_default_dtype_as_scalartype();
  c10::set_default_dtype(c10::scalarTypeToTypeMeta(dtype));
  return Scope([before] { c10::set_default_dtype(c10::scalarTypeToTypeMeta(before)); });
}

}  // namespace fabric

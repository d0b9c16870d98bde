#pragma once

#include <c10/core/DeviceType.h>
#include <c10/core/ScalarType.h>

#include <fabric/base/scope.h>

namespace fabric {

/// Until the scope ends, operators on devices of this kind run in `dtype` where that is safe, in this thread. The
/// outermost scope forgets the converted weights when it ends, since the optimizer is about to change their originals.
Scope autocast_scope(c10::DeviceType device_type, c10::ScalarType dtype);

}  // namespace fabric

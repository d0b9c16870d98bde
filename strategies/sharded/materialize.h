#pragma once

#include <functional>

#include <c10/core/Device.h>

#include <fabric/base/scope.h>

#include "strategies/sharded/unit_plan.h"

namespace fabric::sharded {

/// Until the scope closes, tensors that factory functions make have no storage: they are on the meta device.
Scope build_on_meta();

/// Gives what a plan has on the meta device, parameters and the buffers of the same modules, memory on `device` and
/// initial values: by `reset` where there is one, else by the reset_parameters of LibTorch's own layers. Throws
/// MisuseError for a module that neither knows.
void materialize(const UnitPlan& plan, c10::Device device, const std::function<void(torch::nn::Module&)>& reset);

}  // namespace fabric::sharded

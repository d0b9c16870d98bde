#pragma once

namespace sim {

/// Makes the devices and registers the accelerator "sim" and the process-group backend "sim", once in a process, as any
/// program would: by public headers alone.
void register_parts();

}  // namespace sim

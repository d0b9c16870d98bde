#pragma once

#include <filesystem>

#include <fabric/accelerators/cuda.h>
#include <fabric/base/env_reader.h>

namespace fabric {

/// Looks for GPUs without initialising CUDA: the driver's device nodes below `dev`, narrowed by CUDA_VISIBLE_DEVICES.
/// `has_driver` tells whether libcuda can be loaded, `has_plugin` whether libtorchfabric_cuda is installed.
CudaAccelerator::Presence find_cuda(const EnvReader& env, const std::filesystem::path& dev, bool has_driver,
                                    bool has_plugin);
/// The same for this process.
CudaAccelerator::Presence find_cuda();

}  // namespace fabric

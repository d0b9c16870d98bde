#pragma once

#include <string>

#include <fabric/export.h>

namespace fabric {

/// What libtorchfabric and its plug-in libraries (MPI, CUDA) must agree on; raised when a function between them
/// changes.
inline constexpr int kPluginAbi = 2;

/// Finds `symbol` in the plug-in library `library` ("torchfabric_mpi": libtorchfabric_mpi.so beside libtorchfabric, or
/// wherever the dynamic linker finds it). Loads it on the first call and never unloads it. Throws UnavailableError
/// when it is not there, cannot be loaded, lacks the symbol or was built for another version; the text ends with
/// `hint`. `abi` is what the caller was compiled with: kPluginAbi.
FABRIC_API void* load_plugin_symbol(const std::string& library, const std::string& symbol, int abi,
                                    const std::string& hint = "");

/// Whether the plug-in library lies beside libtorchfabric, found without loading it.
FABRIC_API bool has_plugin_library(const std::string& library);

}  // namespace fabric

/// Once in each plug-in library: says which version it was built for.
#define FABRIC_DEFINE_PLUGIN_ABI() \
  extern "C" FABRIC_API int fabric_plugin_abi() { return ::fabric::kPluginAbi; }

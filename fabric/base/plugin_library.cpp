#include <fabric/base/plugin_library_internal.h>

#include <dlfcn.h>

#include <filesystem>
#include <map>
#include <mutex>

#include <fabric/base/error.h>

namespace fabric {
namespace {

// A plug-in shares this library's folder in the build tree and after installation alike.
std::string own_folder() {
  Dl_info info{};
  if (!dladdr(reinterpret_cast<void*>(&load_plugin_symbol), &info) || !info.dli_fname) return "";
  return std::filesystem::path(info.dli_fname).parent_path().string();
}

// Global, since plug-ins of Open MPI expect to find libmpi's symbols in the process. Never closed: LibTorch's CUDA
// part registers itself in tables that do not forget.
void* open_library(const std::string& file, const std::string& hint) {
  auto beside = std::filesystem::path(own_folder()) / file;
  std::error_code ignored;
  auto path = std::filesystem::exists(beside, ignored) ? beside.string() : file;
  if (void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL)) return handle;
  const char* reason = dlerror();
  throw UnavailableError("cannot load " + file + ": " + (reason ? reason : "unknown reason") +
                         (hint.empty() ? "" : ". " + hint));
}

void check_abi(void* handle, const std::string& file, int abi) {
  auto* version = reinterpret_cast<int (*)()>(dlsym(handle, "fabric_plugin_abi"));
  int found = version ? version() : 0;
  if (found != abi)
    throw UnavailableError(file + " belongs to another build of TorchFabric (its interface is " +
                           std::to_string(found) + ", this library's is " + std::to_string(abi) +
                           "). Install both from one build");
}

}  // namespace

void* load_plugin_symbol(const std::string& library, const std::string& symbol, int abi, const std::string& hint) {
  static std::mutex mutex;
  static std::map<std::string, void*> loaded;
  std::lock_guard lock(mutex);
  auto file = "lib" + library + ".so";
  auto& handle = loaded[library];
  if (!handle) {
    void* opened = open_library(file, hint);
    check_abi(opened, file, abi);
    handle = opened;
  }
  if (void* found = dlsym(handle, symbol.c_str())) return found;
  throw UnavailableError(file + " has no symbol '" + symbol + "'. Install it from the same build as libtorchfabric");
}

bool has_plugin_library(const std::string& library) {
  std::error_code ignored;
  return std::filesystem::exists(std::filesystem::path(own_folder()) / ("lib" + library + ".so"), ignored);
}

}  // namespace fabric

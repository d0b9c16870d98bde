#include "launcher/start/single_thread.h"

#include <dlfcn.h>

#include <filesystem>
#include <string>
#include <vector>

#include <fabric/base/error.h>

#include "fabric/base/files_internal.h"

namespace fabric {
namespace {

/// The names of all threads but one; a process that cannot be asked has none.
std::vector<std::string> other_threads() {
  std::vector<std::string> names;
  std::error_code ignored;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task", ignored))
    names.push_back(first_line(task.path() / "comm"));
  if (!names.empty()) names.erase(names.begin());
  return names;
}

}  // namespace

bool can_be_copied() {
  if (!other_threads().empty()) return false;
  // The driver is loaded when CUDA is used for the first time, merely counting devices included.
  void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
  if (driver) dlclose(driver);
  return !driver;
}

void require_single_thread(const char* what) {
  auto threads = other_threads();
  if (threads.empty()) return;
  std::string names;
  for (const auto& name : threads) names += (names.empty() ? "" : ", ") + name;
  throw MisuseError("cannot " + std::string(what) + ": " + std::to_string(threads.size()) +
                    " more threads run in this process (" + names +
                    "), and a forked child would lack them. Launch before anything starts threads, or use the start "
                    "method 'spawn' or 'popen'");
}

}  // namespace fabric

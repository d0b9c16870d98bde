#include <fabric/helpers/shared_filesystem.h>

#include <stdlib.h>
#include <unistd.h>

#include <thread>

#include <fabric/base/error.h>
#include <fabric/strategies/strategy.h>

namespace fabric {
namespace {

// A file server may show a new file late, and only when its folder is read again.
bool appears(const std::filesystem::path& file, std::chrono::milliseconds timeout) {
  auto deadline = std::chrono::steady_clock::now() + timeout;
  for (;;) {
    std::error_code error;
    std::filesystem::directory_iterator refreshed(file.parent_path(), error);
    if (std::filesystem::exists(file, error)) return true;
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

// Under a name that is nobody's yet: what others have planted there is neither followed nor written to.
std::string make_marker(const std::filesystem::path& folder) {
  std::string name = (folder / ".fabric_shared_XXXXXX").string();
  int fd = mkstemp(name.data());
  if (fd < 0) return "";
  close(fd);
  return name;
}

}  // namespace

bool is_shared_filesystem(Strategy& strategy, const std::filesystem::path& path, std::chrono::milliseconds timeout) {
  if (strategy.ranks().world_size <= 1) return true;
  std::error_code error;
  auto mine = std::filesystem::absolute(path, error).lexically_normal();
  auto first = strategy.broadcast(mine.string()).as_string();
  if (!strategy.reduce_boolean_decision(mine == std::filesystem::path(first), true)) return false;
  bool here = std::filesystem::exists(mine, error);
  if (!strategy.reduce_boolean_decision(here, false)) throw Error("no rank has the path " + mine.string());
  if (!strategy.reduce_boolean_decision(here, true)) return false;

  auto folder = std::filesystem::is_directory(mine, error) ? mine : mine.parent_path();
  std::string marker = strategy.is_global_zero() ? make_marker(folder) : "";
  auto name = strategy.broadcast(marker).as_string();
  // An empty name: rank 0 cannot write here.
  if (name.empty())
    throw Error("rank 0 cannot write in " + folder.string() + ", so it cannot be tested for being shared");
  bool shared = strategy.reduce_boolean_decision(appears(name, timeout), true);
  // Nobody leaves while the marker is still there.
  strategy.run_together("is_shared_filesystem", [&] {
    if (!marker.empty()) std::filesystem::remove(marker, error);
  });
  return shared;
}

}  // namespace fabric

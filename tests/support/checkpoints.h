#pragma once
// What the tests of checkpoints share.

#include <sys/mount.h>

#include <algorithm>
#include <string>
#include <vector>

#include <ATen/ops/full.h>

#include <fabric/helpers/checkpointing/model_checkpoint.h>
#include <fabric/plugins/checkpoint_io/checkpoint_io.h>

#include "plugins/checkpoint_io/test_files.h"
#include "tests/support/catch.h"

namespace checkpoint_test {

using fabric::Metrics;
using fabric::ModelCheckpoint;
using fabric::State;
using fabric::Value;
using Names = std::vector<std::string>;

inline Names names_in(const std::filesystem::path& folder) {
  Names names;
  if (std::filesystem::exists(folder))
    for (const auto& entry : std::filesystem::directory_iterator(folder)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}
inline Names names_in(const Folder& folder) { return names_in(folder.path()); }

inline Value read(const std::filesystem::path& path) { return fabric::make_checkpoint_io()->load(path); }

/// The number that `numbered` put into a checkpoint.
inline double number_in(const std::filesystem::path& path) {
  return read(path).at("weight").as<at::Tensor>().mean().item<double>();
}
inline State numbered(double number, std::int64_t size = 4) { return {{"weight", at::full({size}, number)}}; }

/// Keeps the k best of `val_loss`.
inline ModelCheckpoint::Config watching(const Folder& folder, int k = 1) {
  return {.dirpath = folder.path(), .monitor = "val_loss", .save_top_k = k};
}
/// A loop of one update per number, the metric `val_loss`.
inline void run(ModelCheckpoint& keep, const std::vector<double>& losses) {
  for (double loss : losses) keep.update({{"val_loss", loss}}, numbered(loss));
}

/// A folder that fits no more than some bytes, or that can be made read-only; `ok` is false without the right to mount.
struct SmallDisk {
  SmallDisk(const std::filesystem::path& at, const char* options) : path(at) {
    std::filesystem::create_directory(path);
    ok = mount("tmpfs", path.c_str(), "tmpfs", 0, options) == 0;
    if (!ok) WARN("skipped: mounting a small file system needs more rights");
  }
  ~SmallDisk() {
    if (ok) umount2(path.c_str(), MNT_DETACH);
  }
  void make_read_only() const { REQUIRE(mount(nullptr, path.c_str(), nullptr, MS_REMOUNT | MS_RDONLY, nullptr) == 0); }
  std::filesystem::path path;
  bool ok;
};

}  // namespace checkpoint_test

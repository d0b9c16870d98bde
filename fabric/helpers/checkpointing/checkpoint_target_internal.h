#pragma once

#include <filesystem>
#include <functional>

#include <fabric/helpers/peers.h>
#include <fabric/state/state.h>

namespace fabric {

class Fabric;

/// How a state becomes a file: what ModelCheckpoint saves through.
struct FABRIC_API CheckpointTarget {
  /// All at once; every rank calls it, and a failure of one is an error on all.
  std::function<void(const std::filesystem::path& path, State& state)> save;
  /// In two parts: every rank collects, rank 0 writes, perhaps later and in another thread.
  std::function<Value(const State& state)> collect;
  std::function<void(const std::filesystem::path& path, const Value& checkpoint)> write;

  /// Fabric::save, and the same way in two parts. `fabric` must outlive it.
  static CheckpointTarget through(const Fabric& fabric);
  /// A function that writes; empty: safetensors files.
  static CheckpointTarget of(std::function<void(const std::filesystem::path&, const Value&)> write, const Peers& peers);
};

/// Runs `work` on rank 0 and gives every rank its result. A failure is a CheckpointError on every rank.
FABRIC_API Value on_rank_zero(const Peers& peers, const std::function<Value()>& work);

}  // namespace fabric

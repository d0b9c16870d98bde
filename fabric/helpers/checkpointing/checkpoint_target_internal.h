#pragma once

#include <filesystem>
#include <functional>
#include <memory>

#include <fabric/helpers/peers.h>
#include <fabric/strategies/checkpointing.h>

namespace fabric {

class Fabric;

/// How a state becomes a checkpoint: what ModelCheckpoint saves through. Every rank calls it, and a failure of one is
/// an error on all.
using CheckpointTarget = std::function<std::shared_ptr<SaveInProgress>(const std::filesystem::path& path,
                                                                       const State& state, const SaveOptions& options)>;
using WriteFunction = std::function<void(const std::filesystem::path& path, const Value& checkpoint)>;

/// Fabric::save; `fabric` must outlive the target.
FABRIC_API CheckpointTarget target_through(const Fabric& fabric);
/// The same way without Fabric, by a function that writes; empty: safetensors files.
FABRIC_API CheckpointTarget target_without_fabric(WriteFunction write, const Peers& peers);

/// Runs `work` on rank 0 and gives every rank its result. A failure is one on every rank.
FABRIC_API Value on_rank_zero(const Peers& peers, const std::string& operation, const std::function<Value()>& work);

}  // namespace fabric

#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <fabric/base/value.h>

namespace fabric {

/// A part of a checkpoint file that may hold other things, such as the settings of a Python program.
struct CheckpointPart {
  Value value;
  /// Python objects that no value can be, each with its place and class ("hyper_parameters.path: pathlib.PosixPath").
  /// None of them was rebuilt. Beside the part:
  std::vector<std::string> passed_over;
  /// In the part itself, where `value` goes without them.
  std::vector<std::string> left_out;
};

/// The entry `key` alone of a file of either format: "model", or "nets.generator" in nested maps; "" for all. Where
/// CheckpointIO::load refuses a file of Python's for the objects in it, this lists them. Throws CheckpointKeyError when
/// there is no such entry, and else as `load` does.
FABRIC_API CheckpointPart load_checkpoint_part(const std::filesystem::path& path, const std::string& key = "");

/// What a file of either format holds, at the cost of its header: the bytes of tensors are neither read nor checked
/// before somebody uses them. For looking at plain values, such as the step. Throws as CheckpointIO::load does.
FABRIC_API Value peek_checkpoint(const std::filesystem::path& path);

}  // namespace fabric

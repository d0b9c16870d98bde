#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <iosfwd>
#include <string>
#include <vector>

#include <fabric/export.h>

namespace fabric::checkpoint {

/// What the program `fabric-checkpoint` does. None of it holds more of a checkpoint in memory than a chunk.

/// Told now and then what is being done, and how many bytes of how many are.
using ToolProgress = std::function<void(const char* doing, std::uint64_t done, std::uint64_t total)>;

struct VerifyReport {
  std::vector<std::string> faults;  // each names what, file and bytes
  std::string format;               // "safetensors", "torch", "sharded", "dcp" or "huggingface"
  std::size_t tensors = 0, files = 0;
  std::uint64_t checked = 0;    // bytes
  std::uint64_t unchecked = 0;  // bytes that the checkpoint has no checksum of
};
/// Compares everything with its checksums, of any checkpoint that can be loaded. Throws CheckpointError where there is
/// none.
FABRIC_API VerifyReport verify_checkpoint(const std::filesystem::path& path, const ToolProgress& progress = {});

/// What the checkpoint holds and where it lies, as text for people.
FABRIC_API std::string inspect_checkpoint(const std::filesystem::path& path);

struct CopyOptions {
  bool verify = true;  // the source, before anything is written
  ToolProgress progress = {};
};
struct CopyReport {
  std::size_t tensors = 0;
  std::uint64_t bytes = 0;
};
/// One safetensors file out of a sharded checkpoint: the one that would have been saved instead, to the last bit.
FABRIC_API CopyReport consolidate_checkpoint(const std::filesystem::path& folder, const std::filesystem::path& file,
                                             const CopyOptions& options = {});
/// A sharded checkpoint of `shards` files out of any checkpoint. Large tensors are split by rows, each of the others
/// goes to one of the files.
FABRIC_API CopyReport shard_checkpoint(const std::filesystem::path& source, const std::filesystem::path& folder,
                                       int shards, const CopyOptions& options = {});

/// Where to say what was written to a path: on stderr if that is a pipe or a device, which stdout may lead to as well.
FABRIC_API std::ostream& said_on(const std::filesystem::path& path);
/// Text with names from files in it: control bytes become escapes.
FABRIC_API std::string printable(const std::string& text);

}  // namespace fabric::checkpoint

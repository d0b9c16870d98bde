#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <fabric/base/value.h>

namespace fabric {

/// How a tree of values becomes a file and back. Called by the strategy, on the ranks that write or read.
class FABRIC_API CheckpointIO {
 public:
  virtual ~CheckpointIO() = default;
  virtual std::string name() const = 0;
  /// Writes the whole tree or nothing: an existing file at `path` stays as it is when anything fails. Makes parent
  /// folders.
  virtual void save(const Value& checkpoint, const std::filesystem::path& path) = 0;
  /// Tensors come back on CPU and may share the file's mapped pages (private: writing to them never changes the file).
  /// Throws CheckpointError when the file is missing, CheckpointCorrupt when it cannot be trusted.
  virtual Value load(const std::filesystem::path& path) = 0;
  /// Removes a file or folder of checkpoints; a missing one is no error.
  virtual void remove(const std::filesystem::path& path);
  virtual void teardown() {}
};

/// "safetensors" (the default) or "torch" (a file for Python's torch.load). Either loads files of both formats,
/// recognised by their content: also what Python wrote with torch.save, as long as it holds plain values and tensors;
/// no code in it is ever run. Throws ConfigError for a name that is not registered.
FABRIC_API std::shared_ptr<CheckpointIO> make_checkpoint_io(const std::string& name = "safetensors");

using MakeCheckpointIO = std::function<std::shared_ptr<CheckpointIO>()>;
/// Adds a format for the setting `checkpoint_io`. Throws ConfigError for a name that is taken, unless
/// `override_existing`. Names are case-insensitive.
FABRIC_API void register_checkpoint_io(const std::string& name, MakeCheckpointIO make, bool override_existing = false,
                                       std::string description = "");
FABRIC_API std::vector<std::string> available_checkpoint_ios();

}  // namespace fabric

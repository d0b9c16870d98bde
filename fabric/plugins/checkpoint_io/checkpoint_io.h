#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <fabric/base/value.h>
#include <fabric/plugins/checkpoint_io/async_writer.h>
#include <fabric/state/sharding.h>

namespace fabric {

/// How several ranks write one checkpoint, each its own part. Nothing here communicates: the strategy does.
class FABRIC_API PartWriter {
 public:
  virtual ~PartWriter() = default;
  /// Rank 0, first: makes the place that the parts go to, beside `path`. All ranks are told what it returns.
  virtual std::string begin(const std::filesystem::path& path) = 0;
  /// Every rank, perhaps in a thread of its own: writes this rank's part and makes it durable. Tensors that every rank
  /// has whole are written once: which rank writes which follows from `rank` and `world_size`, as all ranks have the
  /// same tree. Returns what `commit` has to know of the part.
  virtual Value write(const std::string& place, const StatePart& part, int rank, int world_size) = 0;
  /// Rank 0, when every part is durable: makes them the checkpoint at `path`, all at once.
  virtual void commit(const std::string& place, const std::filesystem::path& path, const std::vector<Value>& parts) = 0;
  /// Rank 0, when a part could not be written.
  virtual void discard(const std::string& place) noexcept = 0;
};

/// How a tree of values becomes a file and back. Called by the strategy, on the ranks that write or read.
class FABRIC_API CheckpointIO {
 public:
  CheckpointIO();
  virtual ~CheckpointIO();
  virtual std::string name() const = 0;
  /// Writes the whole tree or nothing: an existing file at `path` stays as it is when anything fails. Makes parent
  /// folders.
  virtual void save(const Value& checkpoint, const std::filesystem::path& path) = 0;
  /// Tensors come back on CPU and may share the file's mapped pages (private: writing to them never changes the file).
  /// Throws CheckpointError when the file is missing, CheckpointCorrupt when it cannot be trusted.
  virtual Value load(const std::filesystem::path& path) = 0;
  /// As `load`, but tensors may still be in the file (fabric/state/sharding.h), so that each rank reads no more than
  /// what it needs.
  virtual Value open(const std::filesystem::path& path) { return load(path); }
  /// Capability: every rank writes its own part. Null: rank 0 is given the whole checkpoint to save.
  virtual PartWriter* part_writer() { return nullptr; }
  /// Removes a file or folder of checkpoints; a missing one is no error.
  virtual void remove(const std::filesystem::path& path);
  virtual void teardown() {}
  /// Saves beside the training: this object's one thread and one copy in host memory. `save` and `PartWriter::write`
  /// are called in that thread then.
  AsyncWriter& async();
  /// Before parameters or an optimizer's state change (AsyncWriter::await_copy).
  void await_copy() noexcept {
    if (async_) async_->await_copy();
  }

 private:
  std::unique_ptr<AsyncWriter> async_;
};

/// "safetensors" (the default), "sharded" (a folder of such files, one per rank) or "torch" (a file for Python's
/// torch.load). Each loads what any of them wrote, recognised by its content: also what Python wrote with torch.save,
/// as long as it holds plain values and tensors; no code in it is ever run. Throws ConfigError for a name that is not
/// registered.
FABRIC_API std::shared_ptr<CheckpointIO> make_checkpoint_io(const std::string& name = "safetensors");

using MakeCheckpointIO = std::function<std::shared_ptr<CheckpointIO>()>;
/// Adds a format for the setting `checkpoint_io`. Throws ConfigError for a name that is taken, unless
/// `override_existing`. Names are case-insensitive.
FABRIC_API void register_checkpoint_io(const std::string& name, MakeCheckpointIO make, bool override_existing = false,
                                       std::string description = "");
FABRIC_API std::vector<std::string> available_checkpoint_ios();

}  // namespace fabric

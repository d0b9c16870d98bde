#pragma once

#include <filesystem>
#include <functional>
#include <memory>

#include <fabric/plugins/checkpoint_io/checkpoint_io.h>
#include <fabric/plugins/collectives/process_group.h>
#include <fabric/state/rename.h>
#include <fabric/state/state.h>

namespace fabric {

/// What a save leaves out, and who waits for it.
struct SaveOptions {
  /// Which entries of which part are kept.
  StateFilter filter = {};
  /// Return when the state has been copied to host memory; a thread writes it.
  bool async = false;
  /// With `async`: parameters and optimizer states are copied by that thread, while the next forward and backward pass
  /// run; a wrapped optimizer's `step` waits until they are. Whatever else changes them before (a raw optimizer, an
  /// in-place operation of the loop's own) fails the save, which then leaves the checkpoint before.
  bool copy_beside = false;
  /// This rank saves by itself and the others know nothing of it: after an exception, say. Throws MisuseError where the
  /// ranks hold parts of the state.
  bool alone = false;
  /// A symbolic link at the path is replaced; otherwise what it names is.
  bool replaces_link = false;
  /// What belongs to the save once the checkpoint is durable, on the rank that made it so (rank 0); with `async`,
  /// perhaps in the thread that wrote it. When it throws, the save has failed.
  std::function<void()> then = {};
};

/// What a load insists on, by which names, and what it leaves alone.
struct LoadOptions {
  /// What is missing, unexpected or of another shape is an error, in which all of it is named.
  bool strict = true;
  /// Applied to the dotted path of every tensor of the checkpoint ("model.encoder.weight"), before anything is looked
  /// for: all rules in turn (fabric/state/rename.h).
  RenameRules rename = {};
  /// Which tensors of modules are restored, by dotted path after renaming: others keep what they have, and are neither
  /// missing nor unexpected. Empty: all.
  std::function<bool(const std::string& name)> filter = {};
};

/// A save that may still be going on. Destroyed, it waits for what this rank writes, never for another rank; a
/// checkpoint of several parts that nobody waited for is given up then.
class FABRIC_API SaveInProgress {
 public:
  virtual ~SaveInProgress() = default;
  /// This rank has nothing left to write.
  virtual bool ended() const = 0;
  /// Every rank calls it: until the checkpoint is durable. Throws, on every rank, what went wrong on any; another call
  /// does nothing.
  virtual void wait() = 0;
  /// Every rank calls it: as `wait`, but what went wrong is kept for `wait`, and logged where nobody calls that.
  virtual void settle() noexcept = 0;
};

/// Who saves and loads together, how, and what they reach the state by.
struct CheckpointContext {
  ProcessGroup group;
  std::shared_ptr<CheckpointIO> io;
  StateAccess access;
};

/// Collects, agrees, writes, agrees: nothing is written before every rank has collected its part. The format decides
/// who writes: each rank its part where it has a PartWriter, else rank 0 the whole state; parts are then gathered on
/// rank 0 and nowhere else.
FABRIC_API std::shared_ptr<SaveInProgress> save_state(const CheckpointContext& context,
                                                      const std::filesystem::path& path, const State& state,
                                                      const SaveOptions& options = {});
/// Reads, agrees, restores: nothing is changed anywhere when a rank cannot read, or when the state does not fit on one.
/// Returns what `state` did not ask for; without a state the whole checkpoint.
FABRIC_API Value load_state(const CheckpointContext& context, const std::filesystem::path& path, State* state,
                            const LoadOptions& options = {});
inline Value load_state(const CheckpointContext& context, const std::filesystem::path& path, State* state,
                        bool strict) {
  return load_state(context, path, state, LoadOptions{.strict = strict});
}
/// The whole checkpoint for taking parts of it: its tensors may still be in the file.
FABRIC_API Value open_state(const CheckpointContext& context, const std::filesystem::path& path);
/// A file that holds nothing but one module's or optimizer's state.
FABRIC_API void load_raw_state(const CheckpointContext& context, const std::filesystem::path& path,
                               const StateEntry& object, const LoadOptions& options = {});
inline void load_raw_state(const CheckpointContext& context, const std::filesystem::path& path,
                           const StateEntry& object, bool strict) {
  load_raw_state(context, path, object, LoadOptions{.strict = strict});
}

}  // namespace fabric

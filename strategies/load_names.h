#pragma once

#include <functional>
#include <string>
#include <unordered_map>

#include <fabric/state/state.h>
#include <fabric/strategies/checkpointing.h>

namespace fabric {

/// A load under other names and of some tensors only: `rename` goes over the checkpoint, `access` restores modules of
/// what it made.
class NamedLoad {
 public:
  /// The options must outlive this object.
  explicit NamedLoad(const LoadOptions& options) : options_(options) {}
  /// Throws as Renamer does. Rules that no name fits are warned about, with `path`.
  Value rename(Value checkpoint, const std::filesystem::path& path);
  /// `base` with the filter, and with the names in the file beside those in its errors. `state`: where in the
  /// checkpoint a module's entry lies; null: the checkpoint is that entry.
  StateAccess access(const StateAccess& base, const State* state) const;

 private:
  const LoadOptions& options_;
  std::unordered_map<std::string, std::string> originals_;
};

}  // namespace fabric

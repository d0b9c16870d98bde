#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include <fabric/export.h>

namespace fabric {

// What happens to checkpoint files beside writing them. Each call leaves either the old or the new state of a name, at
// whatever moment the process is killed; errors are CheckpointError with path and reason.

/// True for files, folders and links that lead nowhere.
FABRIC_API bool checkpoint_exists(const std::filesystem::path& path);

/// `name(0)`, or the first of `name(1)`, `name(2)` … that is free.
FABRIC_API std::filesystem::path first_free_path(const std::function<std::filesystem::path(int version)>& name,
                                                 const std::function<bool(const std::filesystem::path&)>& may_replace);

/// Gives the content of `file` a second name, which may exist. On file systems that can, both names share the bytes;
/// writing either anew leaves the other as it is.
FABRIC_API void copy_checkpoint(const std::filesystem::path& file, const std::filesystem::path& name);

/// Makes `name` a relative symbolic link to `file`; where links are not possible, a copy.
FABRIC_API void link_checkpoint(const std::filesystem::path& file, const std::filesystem::path& name);

/// Removes a checkpoint, file or folder; one that is gone already is no error.
FABRIC_API void remove_checkpoint(const std::filesystem::path& path);

/// Removes what killed saves left in a folder: `.NAME.partial` of names that end in `extension`. Those that a save at
/// work holds stay.
FABRIC_API void remove_leftovers(const std::filesystem::path& folder, const std::string& extension);

/// Writes a text by way of a temporary name.
FABRIC_API void write_text_file(const std::filesystem::path& path, const std::string& text);

}  // namespace fabric

#pragma once

#include <memory>
#include <string>

#include <fabric/plugins/checkpoint_io/checkpoint_part.h>

#include "plugins/checkpoint_io/mapped_file.h"

namespace fabric::checkpoint {

bool looks_like_torch(const MappedFile& file);
/// The zip archive, not the format from before 1.6, which has no checksums.
bool is_torch_archive(const MappedFile& file);

/// A file that Python wrote with torch.save: plain values and tensors, in dicts, lists and tuples of any nesting. Keys
/// that are numbers become text, tuples lists, complex numbers tensors without dimensions, and all tensors come to CPU.
/// Nothing in the file is ever run: it names classes, and any that is not on a closed list throws CheckpointError
/// naming it.
/// `verify`: the checksums of an archive are compared, unless the file is only looked at.
Value read_torch(const std::shared_ptr<MappedFile>& file, bool verify);
/// Of the entry `key` alone ("" for all). Objects of other classes are passed over and listed.
CheckpointPart read_torch_part(const std::shared_ptr<MappedFile>& file, const std::string& key, bool verify);
/// Of an archive that is a part of something larger. All of it may be an object of another class: then that is listed,
/// and the value is null.
CheckpointPart read_torch_entry(const std::shared_ptr<MappedFile>& archive, bool verify);

}  // namespace fabric::checkpoint

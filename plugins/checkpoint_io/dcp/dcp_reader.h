#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <vector>

#include <fabric/plugins/checkpoint_io/checkpoint_part.h>

#include "plugins/checkpoint_io/dcp/dcp_metadata.h"
#include "plugins/checkpoint_io/mapped_file.h"

namespace fabric::checkpoint {

inline constexpr const char* kDcpMetadata = ".metadata";
/// Where Lightning keeps the entries that are neither models nor optimizers.
inline constexpr const char* kLightningRest = "meta.pt";

/// Whether `path` is a folder that Python wrote with torch.distributed.checkpoint.save.
bool looks_like_dcp(const std::filesystem::path& path);

enum class DcpUse {
  whole,   // everything will be read; a Python object is an error
  parts,   // some will: all is checked now, so that reading does not fail half way; objects are listed
  peek,    // no more than asked for; objects are listed
  pieces,  // everything, piece by piece, without comparing sums of tensors; objects are listed
};
/// Its tree; tensors are still in the files, which are added to `files`. Throws CheckpointError or CheckpointCorrupt.
/// `verify`: the checksums in the archives of torch.save are compared.
CheckpointPart open_dcp(const std::filesystem::path& folder, DcpUse use, bool verify,
                        std::vector<std::shared_ptr<MappedFile>>* files = nullptr);

/// Of each entry in turn the archives of torch.save that hold it, one for each of its chunks. Throws CheckpointCorrupt
/// where files are missing or torn.
void for_each_dcp_entry(
    const std::filesystem::path& folder,
    const std::function<void(const DcpEntry&, const std::vector<std::shared_ptr<MappedFile>>& archives)>& visit);

}  // namespace fabric::checkpoint

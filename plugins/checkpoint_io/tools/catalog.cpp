// What is in a checkpoint and where it lies, of every format that is read. Faults are collected as far as what is left
// can still be listed, so that one broken shard does not hide another.
#include "plugins/checkpoint_io/tools/catalog.h"

#include <functional>
#include <new>
#include <string_view>
#include <unordered_map>

#include <c10/util/Exception.h>

#include <fabric/base/error.h>

#include "plugins/checkpoint_io/dcp/dcp_reader.h"
#include "plugins/checkpoint_io/open_checkpoint.h"
#include "plugins/checkpoint_io/safetensors/safetensors.h"
#include "plugins/checkpoint_io/safetensors/weight_map.h"
#include "plugins/checkpoint_io/sharded/sharded_index.h"
#include "plugins/checkpoint_io/sharded/sharded_io.h"
#include "plugins/checkpoint_io/torch/torch_reader.h"
#include "plugins/checkpoint_io/torch/zip_reader.h"

namespace fabric::checkpoint {
namespace {

namespace fs = std::filesystem;

CheckedRange range_of(const std::string& tensor, ByteRange bytes, std::optional<std::uint32_t> sum) {
  return {"the tensor '" + tensor + "'", bytes, sum};
}

std::string type_text(c10::ScalarType type) {
  const auto name = safetensors_name(type);
  return name ? std::string(*name) : c10::toString(type);
}

/// The next file of the checkpoint.
std::size_t add_file(const fs::path& path, Catalog& catalog) {
  catalog.files.push_back(path);
  return catalog.files.size() - 1;
}

// A file of which nothing has a checksum.
void list_unsummed(const std::string& what, const MappedFile& file, std::size_t number, Catalog& catalog) {
  catalog.ranges.push_back({what, {number, 0, file.size()}, std::nullopt});
}

CatalogTensor tensor_of(const TensorEntry& entry, std::size_t file, std::uint64_t start) {
  const ByteRange bytes{file, start + entry.begin, start + entry.end};
  std::vector<std::int64_t> offsets(entry.shape.size(), 0);
  return {entry.name, entry.type_name, entry.shape, entry.end - entry.begin, {{bytes, offsets, entry.shape}}};
}

// A header whose own checksum is wrong is listed all the same, if it can be read; its sums are not to be trusted then.
OpenSafetensors open_listed(const MappedFile& file, Catalog& catalog) {
  try {
    return open_safetensors(file, true);
  } catch (const CheckpointCorrupt& error) {
    catalog.faults.push_back("'" + file.path().filename().string() + "': " + error.what());
  }
  return open_safetensors(file, false);
}

void list_safetensors(const MappedFile& file, std::size_t number, Catalog& catalog) {
  const auto [header, start] = open_listed(file, catalog);
  for (const auto& entry : header.entries) {
    catalog.tensors.push_back(tensor_of(entry, number, start));
    catalog.ranges.push_back(range_of(entry.name, catalog.tensors.back().boxes[0].bytes, entry.crc32c));
  }
}

// --- PyTorch's files

void list_torch_tensors(Value& values, const MappedFile& file, std::size_t number, Catalog& catalog) {
  for_each_leaf_tensor(values, [&](at::Tensor& tensor, const std::string& path) {
    if (!tensor.defined()) return;
    CatalogTensor item{path,
                       type_text(tensor.scalar_type()),
                       tensor.sizes().vec(),
                       static_cast<std::uint64_t>(tensor.numel()) * tensor.element_size(),
                       {}};
    auto* data = tensor.layout() == c10::kStrided ? static_cast<const std::byte*>(tensor.const_data_ptr()) : nullptr;
    if (std::greater_equal<>()(data, file.data()) && std::less<>()(data, file.data() + file.size())) {
      const auto begin = static_cast<std::uint64_t>(data - file.data());
      std::vector<std::int64_t> offsets(item.shape.size(), 0);
      item.boxes.push_back({{number, begin, begin + (tensor.is_contiguous() ? item.bytes : 0)}, offsets, item.shape});
    }
    catalog.tensors.push_back(std::move(item));
  });
}

void list_left_out(const CheckpointPart& part, Catalog& catalog) {
  for (const auto& object : part.left_out) catalog.notes.push_back("passed over the Python object " + object);
}

// The entries of an archive that begins at `start` of a file. `of` stands behind their names.
void list_archive(const std::shared_ptr<MappedFile>& file, std::size_t number, std::uint64_t start,
                  const std::string& of, Catalog& catalog) {
  const ZipReader archive(file);
  for (const auto& [name, entry] : archive.entries()) {
    const auto begin = start + entry.offset;
    // Zero is none.
    const auto sum = entry.checksum != 0 || entry.size == 0 ? std::optional(entry.checksum) : std::nullopt;
    catalog.ranges.push_back({"the entry '" + name + "'" + of, {number, begin, begin + entry.size}, sum, true});
  }
}

void list_torch_ranges(const std::shared_ptr<MappedFile>& file, std::size_t number, Catalog& catalog) {
  if (is_torch_archive(*file))
    list_archive(file, number, 0, "", catalog);
  else
    list_unsummed("the file", *file, number, catalog);
}

/// Returns what it holds.
Value list_torch(const std::shared_ptr<MappedFile>& file, std::size_t number, Catalog& catalog) {
  file->peek();
  CheckpointPart part = read_torch_part(file, "", true);
  list_left_out(part, catalog);
  list_torch_tensors(part.value, *file, number, catalog);
  list_torch_ranges(file, number, catalog);
  return std::move(part.value);
}

// --- shards

struct ListedShard {
  OpenSafetensors opened;
  std::unordered_map<std::string_view, const TensorEntry*> by_name;
  bool usable = false;
};

ListedShard list_shard(const fs::path& path, const ShardedIndex::File& listed, Catalog& catalog) {
  try {
    auto file = MappedFile::open(path);
    if (file->size() != listed.bytes)
      throw CheckpointCorrupt("'" + listed.name + "': it has " + std::to_string(file->size()) + " bytes instead of " +
                              std::to_string(listed.bytes));
    ListedShard shard{open_listed(*file, catalog), {}, true};
    for (const auto& entry : shard.opened.header.entries) shard.by_name.emplace(entry.name, &entry);
    return shard;
  } catch (const CheckpointError& error) {
    catalog.faults.push_back(error.what());
    return {};
  }
}

const TensorEntry* find_entry(const ListedShard& shard, const StoredEntry& entry, const StoredChunk& chunk) {
  auto found = shard.by_name.find(entry.name_in_file(chunk));
  if (found == shard.by_name.end()) return nullptr;
  return found->second->type == entry.type && at::IntArrayRef(found->second->shape) == chunk.shape ? found->second
                                                                                                   : nullptr;
}

void list_chunks(const StoredEntry& entry, const std::vector<ListedShard>& shards, Catalog& catalog) {
  CatalogTensor tensor{entry.name,
                       std::string(*safetensors_name(entry.type)),
                       entry.shape,
                       *checked_bytes(entry.shape, c10::elementSize(entry.type)),
                       {}};
  for (const auto& chunk : entry.chunks) {
    const auto& shard = shards[chunk.file];
    if (!shard.usable) continue;
    const TensorEntry* found = find_entry(shard, entry, chunk);
    if (!found) {
      catalog.faults.push_back("'" + catalog.files[chunk.file].filename().string() + "' does not hold the part of '" +
                               entry.name + "' that the index promises");
      continue;
    }
    const ByteRange bytes{chunk.file, shard.opened.start + found->begin, shard.opened.start + found->end};
    tensor.boxes.push_back({bytes, at::IntArrayRef(chunk.offsets).vec(), at::IntArrayRef(chunk.shape).vec()});
    catalog.ranges.push_back(range_of(entry.name, bytes, chunk.crc32c));
  }
  catalog.tensors.push_back(std::move(tensor));
}

void list_own(const ShardedIndex& index, const std::vector<ListedShard>& shards, Catalog& catalog) {
  const auto shared = index.names_in_files();
  for (std::size_t rank = 0; rank < shards.size(); ++rank)
    for (const auto& entry : shards[rank].opened.header.entries) {
      if (shared.contains(entry.name)) continue;
      auto tensor = tensor_of(entry, rank, shards[rank].opened.start);
      tensor.name += " (rank " + std::to_string(rank) + ")";
      catalog.ranges.push_back(range_of(tensor.name, tensor.boxes[0].bytes, entry.crc32c));
      catalog.tensors.push_back(std::move(tensor));
    }
}

void list_sharded(const fs::path& folder, Catalog& catalog) {
  catalog.format = "sharded";
  auto text = MappedFile::open(folder / kIndexName);
  ShardedIndex index;
  try {
    index = ShardedIndex::parse(text->text(0, text->size()));
  } catch (const CheckpointCorrupt& error) {
    catalog.faults.push_back(std::string("'") + kIndexName + "': " + error.what());
    index = ShardedIndex::parse(text->text(0, text->size()), false);
  }
  std::vector<ListedShard> shards;
  shards.reserve(index.files.size());  // they point into themselves
  for (const auto& file : index.files) {
    catalog.files.push_back(folder / file.name);
    shards.push_back(list_shard(catalog.files.back(), file, catalog));
  }
  for (const auto& entry : index.tensors) list_chunks(entry, shards, catalog);
  list_own(index, shards, catalog);
}

// --- folders of other programs

void list_weights(const fs::path& index, Catalog& catalog) {
  catalog.format = "huggingface";
  const auto files = weight_map_files(index);
  if (files != std::vector{index})
    list_unsummed("the index", *MappedFile::open(index), add_file(index, catalog), catalog);
  for (const auto& path : files) {
    const auto number = add_file(path, catalog);
    try {
      const auto file = MappedFile::open(path);
      if (is_torch_file(*file))
        list_torch(file, number, catalog);
      else
        list_safetensors(*file, number, catalog);
    } catch (const CheckpointError& error) {
      catalog.faults.push_back("'" + path.filename().string() + "': " + error.what());
    }
  }
}

void list_dcp_entries(const fs::path& folder, Catalog& catalog) {
  std::unordered_map<std::string, std::size_t> numbers;
  for_each_dcp_entry(folder, [&](const DcpEntry& entry, const std::vector<std::shared_ptr<MappedFile>>& archives) {
    CatalogTensor tensor{entry.name, "", entry.shape, 0, {}};
    for (std::size_t i = 0; i < archives.size(); ++i) {
      const auto& [offsets, shape, place] = entry.chunks[i];
      const auto [known, is_new] = numbers.emplace(place.file, 0);
      if (is_new) known->second = add_file(folder / place.file, catalog);
      tensor.boxes.push_back({{known->second, place.offset, place.offset + place.length}, offsets, shape});
      try {
        list_archive(archives[i], known->second, place.offset, " of '" + entry.name + "'", catalog);
      } catch (const CheckpointError& error) {
        catalog.faults.push_back("the part of '" + entry.name + "' in '" + place.file + "': " + error.what());
      }
    }
    if (!entry.type) return;
    tensor.type = type_text(*entry.type);
    tensor.bytes = *checked_bytes(entry.shape, c10::elementSize(*entry.type));
    catalog.tensors.push_back(std::move(tensor));
  });
}

void list_dcp(const fs::path& folder, Catalog& catalog) {
  catalog.format = "dcp";
  const auto index = MappedFile::open(folder / kDcpMetadata);
  list_unsummed("the index", *index, add_file(index->path(), catalog), catalog);
  list_dcp_entries(folder, catalog);
  std::error_code error;
  if (fs::is_regular_file(folder / kLightningRest, error)) {
    const auto rest = MappedFile::open(folder / kLightningRest);
    list_torch_ranges(rest, add_file(rest->path(), catalog), catalog);
  }
  if (!catalog.faults.empty()) return;
  try {
    CheckpointPart part = open_dcp(folder, DcpUse::pieces, false);
    list_left_out(part, catalog);
    catalog.values = std::move(part.value);
  } catch (const CheckpointError& refused) {
    catalog.faults.push_back(refused.what());
  }
}

// What a load would refuse beside the bytes of tensors.
void read_values(const fs::path& path, Catalog& catalog) {
  try {
    catalog.values = open_checkpoint(path).value;
  } catch (const CheckpointError& error) {
    catalog.faults.push_back(error.what());
  }
}

void list_file(const std::shared_ptr<MappedFile>& file, Catalog& catalog) {
  const auto number = add_file(file->path(), catalog);
  if (is_torch_file(*file)) {
    catalog.format = "torch";
    catalog.values = list_torch(file, number, catalog);
  } else {
    catalog.format = "safetensors";
    list_safetensors(*file, number, catalog);
  }
}

template <class List>
void with_path(const fs::path& path, List list) {
  const std::string where = "cannot read the checkpoint '" + path.string() + "': ";
  try {
    list();
  } catch (const CheckpointCorrupt& error) {
    throw CheckpointCorrupt(where + error.what());
  } catch (const CheckpointError& error) {
    throw CheckpointError(where + error.what());
  } catch (const c10::Error& error) {
    throw CheckpointCorrupt(where + error.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    throw CheckpointError(where + "there is not enough memory");
  }
}

}  // namespace

Catalog read_catalog(const fs::path& path) {
  Catalog catalog;
  if (looks_sharded(path)) {
    with_path(path, [&] { list_sharded(sharded_folder(path), catalog); });
  } else if (looks_like_dcp(path)) {
    with_path(path, [&] { list_dcp(path, catalog); });
  } else if (const auto index = find_weight_map(path)) {
    with_path(path, [&] { list_weights(*index, catalog); });
  } else {
    auto file = MappedFile::open(path);
    with_path(path, [&] { list_file(file, catalog); });
  }
  // Those of Python's have been read; what makes a load of others fail is no damage where it is a Python object.
  const bool has_values = catalog.format == "torch" || catalog.format == "dcp";
  if (!has_values && catalog.notes.empty() && catalog.faults.empty()) read_values(path, catalog);
  return catalog;
}

}  // namespace fabric::checkpoint

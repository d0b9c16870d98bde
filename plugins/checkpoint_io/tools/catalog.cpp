// What is in a checkpoint and where it lies, of every format that is read. Faults are collected as far as what is left
// can still be listed, so that one broken shard does not hide another.
#include "plugins/checkpoint_io/tools/catalog.h"

#include <functional>
#include <new>
#include <string_view>
#include <unordered_map>

#include <c10/util/Exception.h>

#include <fabric/base/error.h>

#include "plugins/checkpoint_io/open_checkpoint.h"
#include "plugins/checkpoint_io/safetensors/safetensors.h"
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

void list_safetensors(const MappedFile& file, Catalog& catalog) {
  catalog.format = "safetensors";
  const auto [header, start] = open_listed(file, catalog);
  for (const auto& entry : header.entries) {
    catalog.tensors.push_back(tensor_of(entry, 0, start));
    catalog.ranges.push_back(range_of(entry.name, catalog.tensors.back().boxes[0].bytes, entry.crc32c));
  }
}

// --- PyTorch's files

void list_torch_tensors(const MappedFile& file, Catalog& catalog) {
  for_each_leaf_tensor(catalog.values, [&](at::Tensor& tensor, const std::string& path) {
    if (!tensor.defined()) return;
    auto name = safetensors_name(tensor.scalar_type());
    CatalogTensor item{path,
                       name ? std::string(*name) : c10::toString(tensor.scalar_type()),
                       tensor.sizes().vec(),
                       static_cast<std::uint64_t>(tensor.numel()) * tensor.element_size(),
                       {}};
    auto* data = tensor.layout() == c10::kStrided ? static_cast<const std::byte*>(tensor.const_data_ptr()) : nullptr;
    if (std::greater_equal<>()(data, file.data()) && std::less<>()(data, file.data() + file.size())) {
      const auto begin = static_cast<std::uint64_t>(data - file.data());
      std::vector<std::int64_t> offsets(item.shape.size(), 0);
      item.boxes.push_back({{0, begin, begin + (tensor.is_contiguous() ? item.bytes : 0)}, offsets, item.shape});
    }
    catalog.tensors.push_back(std::move(item));
  });
}

void list_torch(const std::shared_ptr<MappedFile>& file, Catalog& catalog) {
  catalog.format = "torch";
  catalog.zip_sums = true;
  file->peek();
  CheckpointPart part = read_torch_part(file, "", true);
  catalog.values = std::move(part.value);
  for (const auto& object : part.left_out) catalog.notes.push_back("passed over the Python object " + object);
  list_torch_tensors(*file, catalog);
  if (!is_torch_archive(*file)) {
    catalog.ranges.push_back({"the file", {0, 0, file->size()}, std::nullopt});
    return;
  }
  const ZipReader archive(file);
  for (const auto& [name, entry] : archive.entries()) {
    const auto end = entry.offset + entry.size;
    // Zero is none.
    const auto sum = entry.checksum != 0 || entry.size == 0 ? std::optional(entry.checksum) : std::nullopt;
    catalog.ranges.push_back({"the entry '" + name + "'", {0, entry.offset, end}, sum});
  }
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
  auto found = shard.by_name.find(entry.name);
  if (found == shard.by_name.end()) return nullptr;
  return found->second->type == entry.type && found->second->shape == chunk.shape ? found->second : nullptr;
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
    tensor.boxes.push_back({bytes, chunk.offsets, chunk.shape});
    catalog.ranges.push_back(range_of(entry.name, bytes, chunk.crc32c));
  }
  catalog.tensors.push_back(std::move(tensor));
}

void list_own(const ShardedIndex& index, const std::vector<ListedShard>& shards, Catalog& catalog) {
  std::unordered_map<std::string_view, bool> shared;
  for (const auto& entry : index.tensors) shared.emplace(entry.name, true);
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

// What a load would refuse beside the bytes of tensors.
void read_values(const fs::path& path, Catalog& catalog) {
  try {
    catalog.values = open_checkpoint(path).value;
  } catch (const CheckpointError& error) {
    catalog.faults.push_back(error.what());
  }
}

void list_file(const std::shared_ptr<MappedFile>& file, Catalog& catalog) {
  catalog.files.push_back(file->path());
  if (is_torch_file(*file))
    list_torch(file, catalog);
  else
    list_safetensors(*file, catalog);
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
  } else {
    auto file = MappedFile::open(path);
    with_path(path, [&] { list_file(file, catalog); });
  }
  if (catalog.format != "torch" && catalog.faults.empty()) read_values(path, catalog);
  return catalog;
}

}  // namespace fabric::checkpoint

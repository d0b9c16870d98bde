// Reading a sharded checkpoint: the index first, then of each shard its header; the tensors' bytes stay in the mapped
// files until somebody asks for a box of them.
#include <new>
#include <unordered_map>

#include <c10/util/Exception.h>

#include <fabric/base/error.h>

#include "fabric/torch/messages_internal.h"
#include "plugins/checkpoint_io/boxes.h"
#include "plugins/checkpoint_io/mapped_file.h"
#include "plugins/checkpoint_io/safetensors/safetensors.h"
#include "plugins/checkpoint_io/sharded/sharded_index.h"
#include "plugins/checkpoint_io/sharded/sharded_io.h"
#include "plugins/checkpoint_io/structure.h"

namespace fabric::checkpoint {
namespace {

namespace fs = std::filesystem;

/// One tensor, of which the shards hold boxes.
class ShardedTensor : public StoredTensor {
 public:
  struct Piece {
    std::vector<std::int64_t> offsets;
    at::Tensor content;  // in the mapped file
  };
  explicit ShardedTensor(std::vector<Piece> pieces) : pieces_(std::move(pieces)) {}

  void read(at::IntArrayRef offsets, at::Tensor& into) const override {
    for (const auto& piece : pieces_) copy_common(piece.content, piece.offsets, into, offsets);
  }

 private:
  std::vector<Piece> pieces_;
};

struct OpenShard {
  std::unordered_map<std::string, at::Tensor> tensors;
  Value per_rank;
};

// The file is the one that the index was written with.
OpenShard open_shard(const fs::path& folder, const ShardedIndex& index, std::size_t number) {
  const auto& listed = index.files[number];
  auto file = MappedFile::open(folder / listed.name);
  const std::string what = "its shard '" + listed.name + "' ";
  if (file->size() != listed.bytes)
    throw CheckpointCorrupt(what + "has " + std::to_string(file->size()) + " bytes instead of " +
                            std::to_string(listed.bytes));
  SafetensorsContent content = [&] {
    try {
      return read_safetensors_content(file);
    } catch (const CheckpointCorrupt& error) {
      throw CheckpointCorrupt(what + "is damaged: " + error.what());
    }
  }();
  const Tree* tree = content.structure ? &*content.structure : nullptr;
  const Tree* id = tree ? tree->find("id") : nullptr;
  const Tree* rank = tree ? tree->find("rank") : nullptr;
  const Tree* own = tree ? tree->find("per_rank") : nullptr;
  if (!id || !rank || !own || !id->is_string() || id->as_string() != index.id || !rank->is_int() ||
      rank->as_int() != static_cast<std::int64_t>(number))
    throw CheckpointCorrupt(what + "belongs to another save or another rank");
  OpenShard shard;
  // Only what the index does not know is this rank's own.
  std::unordered_map<std::string, at::Tensor> mine;
  std::unordered_map<std::string, bool> listed_names;
  for (const auto& entry : index.tensors) listed_names.emplace(entry.name, true);
  for (auto& [name, tensor] : content.tensors)
    (listed_names.contains(name) ? shard.tensors : mine).emplace(name, std::move(tensor));
  shard.per_rank = put_together(*own, mine);
  return shard;
}

at::Tensor stored_entry(const StoredEntry& entry, std::vector<OpenShard>& shards, const ShardedIndex& index) {
  std::vector<ShardedTensor::Piece> pieces;
  for (const auto& chunk : entry.chunks) {
    auto found = shards[chunk.file].tensors.find(entry.name);
    if (found == shards[chunk.file].tensors.end() || found->second.scalar_type() != entry.type ||
        found->second.sizes() != at::IntArrayRef(chunk.shape))
      throw CheckpointCorrupt("its shard '" + index.files[chunk.file].name + "' does not hold the part of '" +
                              entry.name + "' that the index promises");
    pieces.push_back({chunk.offsets, found->second});
  }
  return make_stored_tensor(entry.shape, entry.type, std::make_shared<ShardedTensor>(std::move(pieces)));
}

Value read_folder(const fs::path& folder) {
  auto text = MappedFile::open(folder / kIndexName);
  ShardedIndex index = ShardedIndex::parse(text->text(0, text->size()));
  std::vector<OpenShard> shards;
  for (std::size_t i = 0; i < index.files.size(); ++i) shards.push_back(open_shard(folder, index, i));
  std::unordered_map<std::string, at::Tensor> tensors;
  for (const auto& entry : index.tensors) tensors.emplace(entry.name, stored_entry(entry, shards, index));
  Value out = put_together(index.tree, tensors);
  if (!index.per_rank.empty() && !out.is_map()) throw CheckpointCorrupt("its index has entries per rank but is no map");
  for (const auto& key : index.per_rank) {
    Value::List all;
    for (const auto& shard : shards) {
      const Value* own = shard.per_rank.find(key);
      if (!own) throw CheckpointCorrupt("a shard lacks its own '" + key + "'");
      all.push_back(*own);
    }
    // As one file has it: of a run of one rank the entry itself.
    out.as_map().append(key, all.size() == 1 ? all[0] : Value(Value::Map{{"per_rank", std::move(all)}}));
  }
  return out;
}

class ShardedIO : public CheckpointIO {
 public:
  std::string name() const override { return "sharded"; }
  void save(const Value& checkpoint, const fs::path& path) override {
    auto place = writer_->begin(path);
    try {
      auto part = writer_->write(place, StatePart{checkpoint}, 0, 1);
      writer_->commit(place, path, {part});
    } catch (...) {
      writer_->discard(place);
      throw;
    }
  }
  Value load(const fs::path& path) override { return in_memory(open(path)); }
  Value open(const fs::path& path) override {
    return looks_sharded(path) ? open_sharded(path) : make_checkpoint_io()->load(path);
  }
  PartWriter* part_writer() override { return writer_.get(); }

 private:
  std::unique_ptr<PartWriter> writer_ = make_shard_writer();
};

}  // namespace

fs::path replaced_sharded(const fs::path& path) {
  return (path.has_parent_path() ? path.parent_path() : fs::path(".")) / ("." + path.filename().string() + ".replaced");
}

bool looks_sharded(const fs::path& path) {
  std::error_code error;
  if (fs::exists(path / kIndexName, error)) return true;
  return !fs::exists(fs::symlink_status(path, error)) && fs::exists(replaced_sharded(path) / kIndexName, error);
}

Value open_sharded(const fs::path& path) {
  const std::string where = "cannot load the checkpoint '" + path.string() + "': ";
  std::error_code error;
  try {
    return read_folder(fs::exists(path, error) ? path : replaced_sharded(path));
  } catch (const CheckpointCorrupt& corrupt) {
    throw CheckpointCorrupt(where + corrupt.what());
  } catch (const CheckpointError& failure) {
    throw CheckpointError(where + failure.what());
  } catch (const c10::Error& error) {
    if (torch_messages::lacks_memory(error)) throw CheckpointError(where + "there is not enough memory");
    throw CheckpointCorrupt(where + error.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    throw CheckpointError(where + "there is not enough memory");
  }
}

std::shared_ptr<CheckpointIO> make_sharded_io() { return std::make_shared<ShardedIO>(); }

}  // namespace fabric::checkpoint

// Reading a sharded checkpoint: the index first, then of each shard its header; the tensors' bytes stay in the mapped
// files until somebody asks for a box of them. A chunk that lies in such a box as a whole is compared with its checksum
// first, once; of one that is read in part nothing can be told without reading all of it.
#include <algorithm>
#include <cstring>
#include <new>
#include <unordered_map>
#include <unordered_set>

#include <c10/util/Exception.h>

#include <fabric/base/error.h>
#include <fabric/plugins/checkpoint_io/read_options.h>

#include "fabric/state/checked_tensor_internal.h"
#include "fabric/torch/messages_internal.h"
#include "plugins/checkpoint_io/boxes.h"
#include "plugins/checkpoint_io/integrity/crc32c.h"
#include "plugins/checkpoint_io/integrity/sealed_text.h"
#include "plugins/checkpoint_io/open_checkpoint.h"
#include "plugins/checkpoint_io/safetensors/safetensors.h"
#include "plugins/checkpoint_io/sharded/sharded_index.h"
#include "plugins/checkpoint_io/sharded/sharded_io.h"
#include "plugins/checkpoint_io/structure.h"

namespace fabric::checkpoint {
namespace {

namespace fs = std::filesystem;

/// One tensor, of which the shards hold boxes.
class ShardedTensor : public CheckedTensor {
 public:
  struct Piece {
    std::vector<std::int64_t> offsets;
    at::Tensor content;                   // in the mapped file
    std::uint64_t begin;                  // there
    std::optional<std::uint32_t> crc32c;  // none: it is not compared, or has been
  };
  ShardedTensor(std::string name, std::vector<std::int64_t> whole, std::vector<Piece> pieces,
                std::vector<std::shared_ptr<MappedFile>> files)
      : name_(std::move(name)), whole_(std::move(whole)), pieces_(std::move(pieces)), files_(std::move(files)) {}

  void read(at::IntArrayRef offsets, at::Tensor& into) const override {
    for (std::size_t i = 0; i < pieces_.size(); ++i) {
      auto& piece = pieces_[i];
      const bool compares = piece.crc32c && lies_in(piece, offsets, into.sizes());
      if (compares && copy_summing(i, offsets, into)) continue;
      if (compares) require_sum(i, crc32c(0, piece.content.const_data_ptr(), piece.content.nbytes()));
      copy_common(piece.content, piece.offsets, into, offsets);
    }
  }

  at::Tensor in_place() const override {
    constexpr std::size_t kWorthPages = std::size_t{1} << 20;
    if (pieces_.size() != 1) return {};
    const auto& piece = pieces_[0];
    if (piece.content.nbytes() < kWorthPages || piece.content.sizes() != at::IntArrayRef(whole_)) return {};
    // Not those that others may be given, or have changed.
    const auto pages = files_[0]->pages(piece.begin, piece.content.nbytes());
    if (!pages) return {};
    if (piece.crc32c) require_sum(0, crc32c(0, pages.get(), piece.content.nbytes()));
    return tensor_at(pages.get(), piece.content.nbytes(), whole_, piece.content.scalar_type(), pages);
  }

  void check(at::IntArrayRef offsets, at::IntArrayRef sizes) const override {
    for (std::size_t i = 0; i < pieces_.size(); ++i) {
      const auto& piece = pieces_[i];
      if (piece.crc32c && lies_in(piece, offsets, sizes))
        require_sum(i, crc32c(0, piece.content.const_data_ptr(), piece.content.nbytes()));
    }
  }

 private:
  void require_sum(std::size_t i, std::uint32_t sum) const {
    auto& piece = pieces_[i];
    if (sum != *piece.crc32c)
      throw CheckpointCorrupt("cannot load the checkpoint '" + files_[i]->path().parent_path().string() + "': " +
                              damage_text(name_, files_[i]->path().filename(), piece.begin,
                                          piece.begin + piece.content.nbytes(), sum, *piece.crc32c));
    piece.crc32c.reset();
  }

  // Each block is summed up and copied while it is in the cache. False where the copy is more than one of bytes.
  bool copy_summing(std::size_t i, at::IntArrayRef offsets, at::Tensor& into) const {
    constexpr std::size_t kBlock = std::size_t{128} << 10;
    const auto& piece = pieces_[i];
    if (!into.is_cpu() || into.scalar_type() != piece.content.scalar_type()) return false;
    at::Tensor target = into;
    for (std::size_t d = 0; d < offsets.size(); ++d)
      target = target.narrow(static_cast<std::int64_t>(d), piece.offsets[d] - offsets[d],
                             piece.content.size(static_cast<std::int64_t>(d)));
    if (!target.is_contiguous() || target.is_conj() || target.is_neg()) return false;
    const auto bytes = piece.content.nbytes();
    auto* from = static_cast<const char*>(piece.content.const_data_ptr());
    auto* to = static_cast<char*>(target.mutable_data_ptr());
    std::uint32_t sum = 0;
    for (std::size_t done = 0; done < bytes; done += kBlock) {
      const auto block = std::min(kBlock, bytes - done);
      sum = crc32c(sum, from + done, block);
      std::memcpy(to + done, from + done, block);
    }
    if (!into.is_inference()) into.unsafeGetTensorImpl()->bump_version();  // as copy_ does
    require_sum(i, sum);
    return true;
  }

  static bool lies_in(const Piece& piece, at::IntArrayRef offsets, at::IntArrayRef sizes) {
    for (std::size_t d = 0; d < sizes.size(); ++d) {
      const auto begin = piece.offsets[d], end = begin + piece.content.size(static_cast<std::int64_t>(d));
      if (begin < offsets[d] || end > offsets[d] + sizes[d]) return false;
    }
    return true;
  }

  std::string name_;
  std::vector<std::int64_t> whole_;  // its shape
  mutable std::vector<Piece> pieces_;
  std::vector<std::shared_ptr<MappedFile>> files_;  // of each piece
};

constexpr std::size_t kMostOpen = 256;  // files at a time, of some thousand that a process may have

struct OpenShard {
  std::shared_ptr<MappedFile> file;
  std::unordered_map<std::string, SafetensorsContent::Item> tensors;
  Value per_rank;
};

// The file is the one that the index was written with.
OpenShard open_shard(const fs::path& folder, const ShardedIndex& index,
                     const std::unordered_set<std::string_view>& listed_names, std::size_t number, bool verify) {
  const auto& listed = index.files[number];
  auto file = MappedFile::open(folder / listed.name, index.files.size() <= kMostOpen);
  const std::string what = "its shard '" + listed.name + "' ";
  if (file->size() != listed.bytes)
    throw CheckpointCorrupt(what + "has " + std::to_string(file->size()) + " bytes instead of " +
                            std::to_string(listed.bytes));
  fetch_header(*file);  // the data may be another rank's
  SafetensorsContent content = [&] {
    try {
      return read_safetensors_content(file, verify);
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
  if (verify && index.has_sums && !content.has_sums)
    throw CheckpointCorrupt(what + "is damaged: its header has no checksums");
  OpenShard shard{file, {}, {}};
  // Only what the index does not know is this rank's own.
  std::unordered_map<std::string, at::Tensor> mine;
  for (auto& item : content.tensors) {
    if (listed_names.contains(item.name)) {
      shard.tensors.emplace(item.name, std::move(item));
      continue;
    }
    std::vector<std::int64_t> begin(item.tensor.sizes().size(), 0);
    std::vector<ShardedTensor::Piece> all{{std::move(begin), item.tensor, item.begin, item.crc32c}};
    mine.emplace(item.name, make_stored_tensor(item.tensor.sizes(), item.tensor.scalar_type(),
                                               std::make_shared<ShardedTensor>(item.name, item.tensor.sizes().vec(),
                                                                               std::move(all), std::vector{file})));
  }
  shard.per_rank = put_together(*own, mine);
  return shard;
}

at::Tensor stored_entry(const StoredEntry& entry, std::vector<OpenShard>& shards, const ShardedIndex& index,
                        bool verify) {
  std::vector<ShardedTensor::Piece> pieces;
  std::vector<std::shared_ptr<MappedFile>> files;
  for (const auto& chunk : entry.chunks) {
    auto found = shards[chunk.file].tensors.find(entry.name_in_file(chunk));
    if (found == shards[chunk.file].tensors.end() || found->second.tensor.scalar_type() != entry.type ||
        found->second.tensor.sizes() != at::IntArrayRef(chunk.shape))
      throw CheckpointCorrupt("its shard '" + index.files[chunk.file].name + "' does not hold the part of '" +
                              entry.name + "' that the index promises");
    const auto& item = found->second;
    pieces.push_back(
        {{chunk.offsets.begin(), chunk.offsets.end()}, item.tensor, item.begin, verify ? chunk.crc32c : std::nullopt});
    files.push_back(shards[chunk.file].file);
  }
  return make_stored_tensor(
      entry.shape, entry.type,
      std::make_shared<ShardedTensor>(entry.name, entry.shape, std::move(pieces), std::move(files)));
}

Value read_folder(const fs::path& folder, bool verify, std::vector<std::shared_ptr<MappedFile>>* files) {
  auto text = MappedFile::open(folder / kIndexName);
  ShardedIndex index = ShardedIndex::parse(text->text(0, text->size()), verify);
  std::vector<OpenShard> shards;
  const auto listed_names = index.names_in_files();
  for (std::size_t i = 0; i < index.files.size(); ++i) {
    shards.push_back(open_shard(folder, index, listed_names, i, verify));
    if (files) files->push_back(shards.back().file);
  }
  std::unordered_map<std::string, at::Tensor> tensors;
  for (const auto& entry : index.tensors) tensors.emplace(entry.name, stored_entry(entry, shards, index, verify));
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

class ShardedIO : public CheckpointIO, public ReadsFiles {
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
    return looks_sharded(path) ? open_sharded(path, verify)
                               : make_checkpoint_io("safetensors", {.verify = verify})->load(path);
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

fs::path sharded_folder(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error) ? path : replaced_sharded(path);
}

Value open_sharded(const fs::path& path, bool verify, std::vector<std::shared_ptr<MappedFile>>* files) {
  const std::string where = "cannot load the checkpoint '" + path.string() + "': ";
  try {
    return read_folder(sharded_folder(path), verify, files);
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

// Who writes what. A tensor that is spread over ranks is written by each that holds a part of it. What every rank has
// is written once: the largest first, each by the rank with the least so far, so that all ranks come to the same answer
// without talking.
#include "plugins/checkpoint_io/sharded/save_plan.h"

#include <algorithm>

#include <ATen/ops/empty.h>

#include <fabric/base/error.h>

#include "plugins/checkpoint_io/safetensors/safetensors_header.h"

namespace fabric::checkpoint {
namespace {

Value sizes_value(at::IntArrayRef sizes) { return Value::List(sizes.begin(), sizes.end()); }

std::vector<std::int64_t> sizes_of(const Value& list) {
  std::vector<std::int64_t> out;
  for (const auto& item : list.as_list()) out.push_back(item.as_int());
  return out;
}

/// By the places of the tensors; -1 for those that are spread.
std::vector<int> share_out(const std::vector<NamedTensor>& tensors, const std::vector<const Shard*>& shards,
                           int world_size) {
  std::vector<std::size_t> common;
  for (std::size_t i = 0; i < tensors.size(); ++i)
    if (!shards[i]) common.push_back(i);
  std::stable_sort(common.begin(), common.end(),
                   [&](auto a, auto b) { return tensors[a].tensor.nbytes() > tensors[b].tensor.nbytes(); });
  std::vector<std::size_t> bytes(static_cast<std::size_t>(world_size), 0);
  std::vector<int> writer(tensors.size(), -1);
  for (auto i : common) {
    auto least = std::min_element(bytes.begin(), bytes.end());
    *least += tensors[i].tensor.nbytes();
    writer[i] = static_cast<int>(least - bytes.begin());
  }
  return writer;
}

// A tensor without elements is written once, as its name and shape have to be somewhere.
bool writes_empty(const Shard& shard, int rank) {
  return rank == 0 && std::find(shard.global_shape.begin(), shard.global_shape.end(), 0) != shard.global_shape.end();
}

// A complex tensor is stored as pairs of reals, so that its last dimension is one more than the shard's.
Value::List describe_chunk(const NamedTensor& entry, const Shard* shard) {
  std::vector<std::int64_t> global = entry.tensor.sizes().vec(), offsets(global.size(), 0);
  if (shard) {
    std::copy(shard->global_shape.begin(), shard->global_shape.end(), global.begin());
    std::copy(shard->offsets.begin(), shard->offsets.end(), offsets.begin());
  }
  return Value::List{entry.name, std::string(*safetensors_name(entry.tensor.scalar_type())), sizes_value(global),
                     sizes_value(offsets), sizes_value(entry.tensor.sizes())};
}

}  // namespace

bool PartPlan::holds(const std::vector<NamedTensor>& tensors, const std::map<std::string, Shard>& shards, int rank,
                     int world_size) const {
  if (rank != rank_ || world_size != world_size_ || tensors.size() != tensors_.size() || shards != shards_)
    return false;
  for (std::size_t i = 0; i < tensors.size(); ++i)
    if (tensors[i].tensor.scalar_type() != tensors_[i].type ||
        tensors[i].tensor.sizes() != at::IntArrayRef(tensors_[i].shape) || tensors[i].name != tensors_[i].name)
      return false;
  return true;
}

bool PartPlan::update(const std::vector<NamedTensor>& tensors, const std::map<std::string, Shard>& shards, int rank,
                      int world_size) {
  if (holds(tensors, shards, rank, world_size)) return false;
  *this = PartPlan();
  std::vector<const Shard*> shard_of;
  for (const auto& entry : tensors) {
    auto found = shards.find(entry.name);
    shard_of.push_back(found == shards.end() ? nullptr : &found->second);
    tensors_.push_back({entry.name, entry.tensor.scalar_type(), entry.tensor.sizes().vec()});
  }
  const auto writer = share_out(tensors, shard_of, world_size);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const bool here =
        shard_of[i] ? tensors[i].tensor.numel() > 0 || writes_empty(*shard_of[i], rank) : writer[i] == rank;
    if (!here) continue;
    mine_.push_back(i);
    chunks_.push_back(describe_chunk(tensors[i], shard_of[i]));
  }
  shards_ = shards;
  rank_ = rank;
  world_size_ = world_size;
  return true;
}

void IndexPlan::add(std::size_t rank, const Value::List& item, std::unordered_map<std::string, std::size_t>& known) {
  const auto& name = item[0].as_string();
  auto shape = sizes_of(item[2]);
  auto type = *safetensors_type(item[1].as_string());
  auto [at, fresh] = known.emplace(name, tensors_.size());
  if (fresh) tensors_.push_back({name, type, shape, {}});
  auto& entry = tensors_[at->second];
  if (entry.shape != shape || entry.type != type)
    throw CheckpointError("the ranks know '" + name + "' with different shapes or types");
  StoredChunk chunk{rank, sizes_of(item[3]), sizes_of(item[4])};
  for (std::size_t i = 0; i < entry.chunks.size(); ++i)
    if (entry.chunks[i].offsets == chunk.offsets && entry.chunks[i].shape == chunk.shape) {  // a replica
      places_[rank].push_back({at->second, kReplica});
      return;
    }
  places_[rank].push_back({at->second, entry.chunks.size()});
  entry.chunks.push_back(std::move(chunk));
}

void IndexPlan::rebuild() {
  tensors_.clear();
  shapes_.clear();
  places_.assign(chunks_.size(), {});
  std::unordered_map<std::string, std::size_t> known;
  for (std::size_t rank = 0; rank < chunks_.size(); ++rank)
    for (const auto& item : chunks_[rank]) add(rank, item.as_list(), known);
  for (const auto& entry : tensors_) {
    if (auto why = why_not_whole(entry.shape, entry.chunks); !why.empty())
      throw CheckpointError("'" + entry.name + "' cannot be put together from the parts that the ranks hold: " + why);
    shapes_.emplace(entry.name, at::empty(entry.shape, at::TensorOptions(entry.type).device(c10::kMeta)));
  }
}

ShardedIndex IndexPlan::index_of(const std::vector<Value>& parts) {
  bool changed = chunks_.size() != parts.size();
  chunks_.resize(parts.size());
  for (std::size_t rank = 0; rank < parts.size(); ++rank)
    if (const Value* chunks = parts[rank].find("chunks")) {
      chunks_[rank] = chunks->as_list();
      changed = true;
    }
  if (changed) rebuild();
  ShardedIndex index;
  index.tensors = tensors_;
  for (std::size_t rank = 0; rank < parts.size(); ++rank) {
    const auto& sums = parts[rank].at("sums").as_list();
    for (std::size_t i = 0; i < sums.size(); ++i)
      if (auto place = places_[rank].at(i); place.chunk != kReplica)
        index.tensors[place.tensor].chunks[place.chunk].crc32c = static_cast<std::uint32_t>(sums[i].as_int());
    index.files.push_back(
        {parts[rank].at("file").as_string(), static_cast<std::uint64_t>(parts[rank].at("bytes").as_int())});
  }
  return index;
}

}  // namespace fabric::checkpoint

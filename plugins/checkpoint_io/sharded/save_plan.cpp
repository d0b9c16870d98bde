// Who writes what. A tensor that is spread over ranks is written by each that holds a part of it. What every rank has
// is written once: the largest first, each by the rank with the least so far, so that all ranks come to the same answer
// without talking.
#include "plugins/checkpoint_io/sharded/save_plan.h"

#include <algorithm>
#include <cstring>

#include <ATen/ops/empty.h>

#include <fabric/base/error.h>

namespace fabric::checkpoint {
namespace {

/// Numbers one after another in the bytes of a string, which is as quick to send as to read.
template <class Number>
void pack(std::string& bytes, const Number* numbers, std::size_t count) {
  bytes.append(reinterpret_cast<const char*>(numbers), count * sizeof(Number));
}

template <class Number>
class Unpacked {
 public:
  explicit Unpacked(const std::string& bytes) : bytes_(bytes) {}
  Number next() {
    Number number;
    if (bytes_.size() - at_ < sizeof number) throw CheckpointError("a rank's plan of the checkpoint is cut off");
    std::memcpy(&number, bytes_.data() + at_, sizeof number);
    at_ += sizeof number;
    return number;
  }
  std::vector<Number> next(std::size_t count) {
    std::vector<Number> out(count);
    for (auto& number : out) number = next();
    return out;
  }
  bool ended() const { return at_ == bytes_.size(); }

 private:
  const std::string& bytes_;
  std::size_t at_ = 0;
};

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

// Length of the name, type, dimensions; the whole shape, offsets, own shape. A complex tensor is stored as pairs of
// reals, so that its last dimension is one more than the shard's.
void describe_chunk(std::string& names, std::string& numbers, const NamedTensor& entry, const Shard* shard) {
  const auto sizes = entry.tensor.sizes();
  std::vector<std::int64_t> global = sizes.vec(), offsets(global.size(), 0);
  if (shard) {
    std::copy(shard->global_shape.begin(), shard->global_shape.end(), global.begin());
    std::copy(shard->offsets.begin(), shard->offsets.end(), offsets.begin());
  }
  names += entry.name;
  const std::int64_t head[] = {static_cast<std::int64_t>(entry.name.size()),
                               static_cast<std::int64_t>(entry.tensor.scalar_type()),
                               static_cast<std::int64_t>(sizes.size())};
  pack(numbers, head, 3);
  for (const auto& list : {at::IntArrayRef(global), at::IntArrayRef(offsets), sizes})
    pack(numbers, list.data(), list.size());
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
  std::string names, numbers;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const bool here =
        shard_of[i] ? tensors[i].tensor.numel() > 0 || writes_empty(*shard_of[i], rank) : writer[i] == rank;
    if (!here) continue;
    mine_.push_back(i);
    describe_chunk(names, numbers, tensors[i], shard_of[i]);
  }
  chunks_ = Value::Map{{"names", std::move(names)}, {"numbers", std::move(numbers)}};
  shards_ = shards;
  rank_ = rank;
  world_size_ = world_size;
  return true;
}

std::string packed_sums(const std::vector<std::uint32_t>& sums) {
  std::string bytes;
  pack(bytes, sums.data(), sums.size());
  return bytes;
}

void IndexPlan::add(std::size_t rank, std::string name, at::ScalarType type, std::vector<std::int64_t> shape,
                    StoredChunk chunk) {
  auto [at, fresh] = known_.emplace(std::move(name), index_.tensors.size());
  if (fresh) index_.tensors.push_back({at->first, type, shape, {}});
  auto& entry = index_.tensors[at->second];
  if (entry.shape != shape || entry.type != type)
    throw CheckpointError("the ranks know '" + at->first + "' with different shapes or types");
  for (const auto& other : entry.chunks)
    if (other.offsets == chunk.offsets && other.shape == chunk.shape) {  // a replica
      places_[rank].push_back({at->second, kReplica});
      return;
    }
  places_[rank].push_back({at->second, entry.chunks.size()});
  entry.chunks.push_back(std::move(chunk));
}

void IndexPlan::rebuild() {
  index_ = {};
  known_.clear();
  shapes_.clear();
  places_.assign(chunks_.size(), {});
  for (std::size_t rank = 0; rank < chunks_.size(); ++rank) {
    const auto& names = chunks_[rank].at("names").as_string();
    Unpacked<std::int64_t> numbers(chunks_[rank].at("numbers").as_string());
    for (std::size_t at = 0; !numbers.ended();) {
      const auto length = static_cast<std::size_t>(numbers.next());
      const auto type = static_cast<at::ScalarType>(numbers.next());
      const auto dims = static_cast<std::size_t>(numbers.next());
      auto shape = numbers.next(dims);
      StoredChunk chunk{rank, numbers.next(dims), numbers.next(dims)};
      add(rank, names.substr(at, length), type, std::move(shape), std::move(chunk));
      at += length;
    }
  }
  for (const auto& entry : index_.tensors)
    if (auto why = why_not_whole(entry.shape, entry.chunks); !why.empty())
      throw CheckpointError("'" + entry.name + "' cannot be put together from the parts that the ranks hold: " + why);
}

ShardedIndex& IndexPlan::index_of(const std::vector<Value>& parts) {
  bool changed = chunks_.size() != parts.size();
  chunks_.resize(parts.size());
  for (std::size_t rank = 0; rank < parts.size(); ++rank)
    if (const Value* chunks = parts[rank].find("chunks")) {
      chunks_[rank] = *chunks;
      changed = true;
    }
  if (changed) rebuild();
  index_.files.clear();
  for (std::size_t rank = 0; rank < parts.size(); ++rank) {
    Unpacked<std::uint32_t> sums(parts[rank].at("sums").as_string());
    for (const auto& place : places_[rank])
      if (const auto sum = sums.next(); place.chunk != kReplica)
        index_.tensors[place.tensor].chunks[place.chunk].crc32c = sum;
    index_.files.push_back(
        {parts[rank].at("file").as_string(), static_cast<std::uint64_t>(parts[rank].at("bytes").as_int())});
  }
  return index_;
}

const std::unordered_map<std::string, at::Tensor>& IndexPlan::shapes() {
  if (shapes_.empty())
    for (const auto& entry : index_.tensors)
      shapes_.emplace(entry.name, at::empty(entry.shape, at::TensorOptions(entry.type).device(c10::kMeta)));
  return shapes_;
}

}  // namespace fabric::checkpoint

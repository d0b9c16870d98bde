// Who writes what. A tensor that is spread over ranks is written by each that holds a part of it. What every rank has
// is written once: the largest first, each by the rank with the least so far, so that all ranks come to the same answer
// without talking.
#include "plugins/checkpoint_io/sharded/save_plan.h"

#include <algorithm>
#include <cstring>
#include <unordered_set>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <fabric/base/error.h>

#include "plugins/checkpoint_io/names.h"

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
  /// In place: a string's bytes lie as numbers have to.
  c10::ArrayRef<Number> next(std::size_t count) {
    if (count > (bytes_.size() - at_) / sizeof(Number))
      throw CheckpointError("a rank's plan of the checkpoint is cut off");
    const auto* begin = reinterpret_cast<const Number*>(bytes_.data() + at_);
    at_ += count * sizeof(Number);
    return {begin, count};
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

/// Packs what the index has to say of chunks.
class Description {
 public:
  // Lengths of the tensor's name and of the chunk's own (0: the same), type, dimensions; the whole shape, offsets, own
  // shape. A complex tensor is stored as pairs of reals, so that its last dimension is one more than the shard's.
  void add(const NamedTensor& entry, const std::string& own_name, at::IntArrayRef global, at::IntArrayRef offsets,
           at::IntArrayRef sizes) {
    const auto shape = entry.tensor.sizes();
    const bool renamed = own_name != entry.name;
    names_ += entry.name;
    if (renamed) names_ += own_name;
    const std::int64_t head[] = {
        static_cast<std::int64_t>(entry.name.size()), renamed ? static_cast<std::int64_t>(own_name.size()) : 0,
        static_cast<std::int64_t>(entry.tensor.scalar_type()), static_cast<std::int64_t>(shape.size())};
    pack(numbers_, head, 4);
    put(global, shape, true);
    put(offsets, shape, false);
    put(sizes, shape, true);
  }
  Value packed() && { return Value::Map{{"names", std::move(names_)}, {"numbers", std::move(numbers_)}}; }

 private:
  // Where a list ends before the tensor's dimensions do: the rest is whole.
  void put(at::IntArrayRef list, at::IntArrayRef shape, bool is_size) {
    if (list.size() > shape.size()) throw CheckpointError("a shard has more dimensions than the tensor that it is");
    pack(numbers_, list.data(), list.size());
    for (auto d = list.size(); d < shape.size(); ++d) {
      const std::int64_t rest = is_size ? shape[d] : 0;
      pack(numbers_, &rest, 1);
    }
  }
  std::string names_, numbers_;
};

/// Names in a rank's file: those of the tensors, and others for further boxes of one.
class FileNames {
 public:
  explicit FileNames(const std::vector<NamedTensor>& tensors) : tensors_(tensors) {}
  std::string of_box(const std::string& tensor, std::size_t box) {
    if (box == 0) return tensor;
    if (taken_.empty())
      for (const auto& entry : tensors_) taken_.insert(entry.name);
    std::string name = tensor + "#" + std::to_string(box);
    while (!taken_.insert(name).second) name += "#";
    return name;
  }

 private:
  const std::vector<NamedTensor>& tensors_;
  std::unordered_set<std::string> taken_;
};

void add_boxes(std::size_t tensor, const NamedTensor& entry, const Shard& shard, FileNames& names,
               std::vector<PartPlan::Piece>& pieces, Description& description) {
  within("'" + entry.name + "' cannot be saved", [&] { local_boxes(entry.tensor, shard); });
  std::size_t count = 0;
  for (const auto& box : shard.boxes) {
    if (std::find(box.sizes.begin(), box.sizes.end(), 0) != box.sizes.end()) continue;
    pieces.push_back({tensor, names.of_box(entry.name, count++), box.local_offsets, box.sizes, false});
    description.add(entry, pieces.back().name, shard.global_shape, box.offsets, box.sizes);
  }
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

at::Tensor PartPlan::Piece::of(const at::Tensor& tensor) const {
  if (is_all) return tensor;
  at::NoGradGuard no_grad;
  at::Tensor box = in_memory(tensor);
  for (std::size_t d = 0; d < sizes.size(); ++d) box = box.narrow(static_cast<std::int64_t>(d), offsets[d], sizes[d]);
  return box;
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
  Description description;
  FileNames names(tensors);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto& [name, tensor] = tensors[i];
    const Shard* shard = shard_of[i];
    if (!shard && writer[i] == rank) {
      mine_.push_back({i, name});
      description.add(tensors[i], name, tensor.sizes(), {}, tensor.sizes());
    } else if (shard && tensor.numel() == 0) {
      if (!writes_empty(*shard, rank)) continue;
      mine_.push_back({i, name});
      description.add(tensors[i], name, shard->global_shape, {}, tensor.sizes());
    } else if (shard && shard->boxes.empty()) {
      mine_.push_back({i, name});
      description.add(tensors[i], name, shard->global_shape, shard->offsets, tensor.sizes());
    } else if (shard) {
      add_boxes(i, tensors[i], *shard, names, mine_, description);
    }
  }
  chunks_ = std::move(description).packed();
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

// Ranks list their tensors in one order as a rule, so that the next one is looked at before all.
std::size_t IndexPlan::place_of(std::string_view name, at::ScalarType type, at::IntArrayRef shape) {
  auto& tensors = index_.tensors;
  std::size_t at = next_;
  if (at >= tensors.size() || tensors[at].name != name) {
    auto [known, fresh] = known_.emplace(name, tensors.size());
    at = known->second;
    if (fresh) tensors.push_back({known->first, type, shape.vec(), {}});
  }
  next_ = at + 1;
  if (shape != at::IntArrayRef(tensors[at].shape) || tensors[at].type != type)
    throw CheckpointError("the ranks know '" + tensors[at].name + "' with different shapes or types");
  return at;
}

void IndexPlan::add(std::size_t rank, std::size_t tensor, StoredChunk chunk) {
  auto& chunks = index_.tensors[tensor].chunks;
  for (const auto& other : chunks)
    if (other.offsets == chunk.offsets && other.shape == chunk.shape) {  // a replica
      places_[rank].push_back({tensor, kReplica});
      return;
    }
  places_[rank].push_back({tensor, chunks.size()});
  if (chunks.size() == 1) chunks.reserve(chunks_.size());  // spread, so probably over all
  chunks.push_back(std::move(chunk));
}

void IndexPlan::rebuild() {
  index_ = {};
  known_.clear();
  shapes_.clear();
  places_.assign(chunks_.size(), {});
  for (std::size_t rank = 0; rank < chunks_.size(); ++rank) {
    const std::string_view names = chunks_[rank].at("names").as_string();
    Unpacked<std::int64_t> numbers(chunks_[rank].at("numbers").as_string());
    next_ = 0;
    for (std::size_t at = 0; !numbers.ended();) {
      const auto length = static_cast<std::size_t>(numbers.next()),
                 own_length = static_cast<std::size_t>(numbers.next());
      const auto type = static_cast<at::ScalarType>(numbers.next());
      const auto dims = static_cast<std::size_t>(numbers.next());
      const auto tensor = place_of(names.substr(at, length), type, numbers.next(dims));
      const auto offsets = numbers.next(dims), sizes = numbers.next(dims);
      StoredChunk chunk{rank, ChunkDims(offsets.begin(), offsets.end()), ChunkDims(sizes.begin(), sizes.end())};
      chunk.stored_as = names.substr(at + length, own_length);
      add(rank, tensor, std::move(chunk));
      at += length + own_length;
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

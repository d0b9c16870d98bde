#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include <ATen/core/Tensor.h>

#include <fabric/base/value.h>
#include <fabric/state/sharding.h>

#include "plugins/checkpoint_io/sharded/sharded_index.h"
#include "plugins/checkpoint_io/tensor_bytes.h"

namespace fabric::checkpoint {

/// What one rank writes of the tensors in its part, and what the index has to say of that. It follows from names,
/// types, shapes and shards alone, and is kept while they stay as they are.
class FABRIC_API PartPlan {
 public:
  /// False when the plan that is kept still holds.
  bool update(const std::vector<NamedTensor>& tensors, const std::map<std::string, Shard>& shards, int rank,
              int world_size);
  /// What this rank writes of a tensor: all that it has, or a box of that.
  struct Piece {
    std::size_t tensor;  // place in `tensors`
    std::string name;    // in the file
    std::vector<std::int64_t> offsets = {}, sizes = {};
    bool is_all = true;
    at::Tensor of(const at::Tensor& tensor) const;
  };
  /// In the order of `tensors`.
  const std::vector<Piece>& mine() const { return mine_; }
  /// Of each of `mine`: its tensor's name, its own, type, the whole shape, offsets, its own shape; packed, for
  /// IndexPlan.
  const Value& chunks() const { return chunks_; }

 private:
  struct Known {
    std::string name;
    at::ScalarType type;
    std::vector<std::int64_t> shape;
  };
  bool holds(const std::vector<NamedTensor>& tensors, const std::map<std::string, Shard>& shards, int rank,
             int world_size) const;

  std::vector<Known> tensors_;
  std::map<std::string, Shard> shards_;
  int rank_ = -1, world_size_ = 0;
  std::vector<Piece> mine_;
  Value chunks_;
};

/// Packs checksums for IndexPlan.
FABRIC_API std::string packed_sums(const std::vector<std::uint32_t>& sums);

/// What all ranks write, put together on rank 0. Kept, too, so that the next save only fills in its sums.
class FABRIC_API IndexPlan {
 public:
  /// `parts`: of each rank a map with `file`, `bytes`, `sums` (of its chunks) and, unless nothing has changed there
  /// since the last call, `chunks`. Throws CheckpointError when they do not make up whole tensors. Returns the index
  /// with its files and tensors; the rest is the caller's.
  ShardedIndex& index_of(const std::vector<Value>& parts);
  /// Tensors without memory, of all names and shapes.
  const std::unordered_map<std::string, at::Tensor>& shapes();

 private:
  static constexpr std::size_t kReplica = static_cast<std::size_t>(-1);  // another rank's chunk is in the index
  struct Place {
    std::size_t tensor, chunk;
  };
  void rebuild();
  std::size_t place_of(std::string_view name, at::ScalarType type, at::IntArrayRef shape);
  void add(std::size_t rank, std::size_t tensor, StoredChunk chunk);

  std::vector<Value> chunks_;               // by rank
  std::vector<std::vector<Place>> places_;  // of each of these in the index
  ShardedIndex index_;
  std::unordered_map<std::string, std::size_t> known_;  // places in it
  std::size_t next_ = 0;                                // behind the one that was looked for last
  std::unordered_map<std::string, at::Tensor> shapes_;
};

}  // namespace fabric::checkpoint

#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <fabric/base/value.h>

namespace torch::nn {
class Module;
}
namespace torch::optim {
class Optimizer;
}

namespace fabric {

/// Where a rank's tensor lies in the whole tensor that several ranks hold together: a box, whose size is the local
/// tensor's own shape, or several boxes.
struct Shard {
  /// A part of the local tensor that lies in one piece in the whole one.
  struct Box {
    /// Of its first element in the local tensor.
    std::vector<std::int64_t> local_offsets;
    /// In the whole tensor.
    std::vector<std::int64_t> offsets;
    std::vector<std::int64_t> sizes;
    bool operator==(const Box&) const = default;
  };
  std::vector<std::int64_t> global_shape;
  /// Of the local tensor's first element; not looked at where there are `boxes`.
  std::vector<std::int64_t> offsets;
  /// What the local tensor consists of, where it is no single box of the whole one: rows of a fused projection that
  /// tensor parallelism has cut apart, or every n-th row. They fill it without overlap. Empty: one box.
  std::vector<Box> boxes = {};
  bool operator==(const Shard&) const = default;
};

/// A box of a rank's tensor, as a view of it, and where it begins in the whole tensor.
struct LocalBox {
  at::Tensor content;
  std::vector<std::int64_t> offsets;
};
/// What `local` consists of. Throws CheckpointError where the shard's boxes do not fill it.
FABRIC_API std::vector<LocalBox> local_boxes(const at::Tensor& local, const Shard& shard);

/// Which part of the whole a parameter or buffer is; nothing: every rank has all of it. Empty: nothing is spread.
using ShardOf = std::function<std::optional<Shard>(const at::Tensor& local)>;

/// One rank's part of what a checkpoint holds. Tensors are shared with their owners, not copied.
struct StatePart {
  /// The whole tree, the same on all ranks but for the tensors that `shards` lists and the entries of `per_rank`.
  Value values;
  /// By the dotted path that leads to a tensor in `values`. Every rank lists the same paths.
  std::map<std::string, Shard> shards = {};
  /// Top-level entries whose content is each rank's own.
  std::set<std::string> per_rank = {};
};

/// `module_state_dict` and `module_shards`, at the cost of one.
FABRIC_API StatePart module_part(const torch::nn::Module& module, const ShardOf& shard_of);
/// The shards among a module's parameters and buffers, by their names in `module_state_dict`.
FABRIC_API std::map<std::string, Shard> module_shards(const torch::nn::Module& module, const ShardOf& shard_of);
/// The shards in an optimizer's state, by their paths in `optimizer_state_dict`: tensors of the shape of a parameter
/// that is a shard itself.
FABRIC_API std::map<std::string, Shard> optimizer_shards(const torch::optim::Optimizer& optimizer,
                                                         const ShardOf& shard_of);

/// The content of a tensor that is still in a file. Readers of checkpoints hand out tensors that have shape and type
/// but no content (on the meta device), so that each rank reads only the boxes it needs.
class FABRIC_API StoredTensor {
 public:
  virtual ~StoredTensor() = default;
  /// Copies the box at `offsets` of the size of `into`, converting type and device. Throws CheckpointError. May be
  /// called from one thread at a time.
  virtual void read(at::IntArrayRef offsets, at::Tensor& into) const = 0;
};
/// A tensor of this shape and type whose content `stored` gives.
FABRIC_API at::Tensor make_stored_tensor(at::IntArrayRef shape, at::ScalarType type,
                                         std::shared_ptr<const StoredTensor> stored);
/// Null for a tensor in memory.
FABRIC_API const StoredTensor* stored_in(const at::Tensor& tensor);
/// Copies the box of `source` at `offsets` of the size of `into`, converting type and device; `source` may be stored.
FABRIC_API void read_box(const at::Tensor& source, at::IntArrayRef offsets, at::Tensor& into);
/// All of `source`, in memory; itself where it is there already.
FABRIC_API at::Tensor in_memory(const at::Tensor& source);
FABRIC_API Value in_memory(Value value);

}  // namespace fabric

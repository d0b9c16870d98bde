// One whole state out of the parts of several ranks, for formats that rank 0 writes alone.
//
// All ranks exchange the description of their parts (some bytes per tensor) and derive the same plan from it: for each
// tensor, by path, which ranks hand in their box. A box that several ranks hold (replicas) is handed in by the first of
// them. Then the boxes travel to rank 0 one after another, in the order of the plan, so that rank 0 holds the whole
// state and one box, and no other rank more than its own part.
#include "strategies/whole_state.h"

#include <set>
#include <sstream>
#include <unordered_map>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <fabric/base/error.h>
#include <fabric/plugins/collectives/run_together.h>

namespace fabric {
namespace {

struct Box {
  int rank;
  std::size_t number;  // among those that the rank's tensor consists of
  std::vector<std::int64_t> offsets, sizes;
  std::int64_t volume() const {
    std::int64_t product = 1;
    for (auto size : sizes) product *= size;
    return product;
  }
  bool overlaps(const Box& other) const {
    for (std::size_t d = 0; d < sizes.size(); ++d)
      if (offsets[d] >= other.offsets[d] + other.sizes[d] || other.offsets[d] >= offsets[d] + sizes[d]) return false;
    return true;
  }
};

struct WholeTensor {
  std::string path;
  std::vector<std::int64_t> shape;
  std::int64_t type = 0;
  std::vector<Box> boxes;
};

using Tensors = std::unordered_map<std::string, at::Tensor>;

Tensors sharded_tensors(const StatePart& part) {
  Tensors tensors;
  for_each_leaf_tensor(const_cast<Value&>(part.values), [&](at::Tensor& tensor, const std::string& path) {
    if (part.shards.contains(path)) tensors.emplace(path, tensor);
  });
  return tensors;
}

Value numbers(at::IntArrayRef list) { return Value::List(list.begin(), list.end()); }

std::vector<std::int64_t> numbers(const Value& list) {
  std::vector<std::int64_t> out;
  for (const auto& item : list.as_list()) out.push_back(item.as_int());
  return out;
}

std::vector<LocalBox> boxes_of(const std::string& path, const at::Tensor& local, const Shard& shard) {
  try {
    return local_boxes(local, shard);
  } catch (const CheckpointError& error) {
    throw CheckpointError("'" + path + "' cannot be saved: " + error.what());
  }
}

Value describe(const StatePart& part, const Tensors& tensors) {
  Value::List out;
  for (const auto& [path, shard] : part.shards) {
    const at::Tensor& local = tensors.at(path);
    Value::List boxes;
    for (const auto& [box, offsets] : boxes_of(path, local, shard))
      boxes.push_back(Value::List{numbers(offsets), numbers(box.sizes())});
    out.push_back(Value::List{path, numbers(shard.global_shape), static_cast<std::int64_t>(local.scalar_type()),
                              std::move(boxes)});
  }
  return out;
}

[[noreturn]] void wrong_parts(const WholeTensor& tensor, const std::string& why) {
  std::ostringstream text;
  text << "'" << tensor.path << "' cannot be put together from the parts that the ranks hold: " << why
       << ". The whole tensor is " << at::IntArrayRef(tensor.shape) << ", the parts are";
  for (const auto& box : tensor.boxes)
    text << (&box == tensor.boxes.data() ? " " : ", ") << at::IntArrayRef(box.sizes) << " at "
         << at::IntArrayRef(box.offsets) << " on rank " << box.rank;
  throw CheckpointError(text.str());
}

// The boxes lie inside, do not overlap and fill the tensor.
void require_cover(const WholeTensor& tensor) {
  std::int64_t whole = 1, covered = 0;
  for (auto size : tensor.shape) whole *= size;
  for (const auto& box : tensor.boxes) {
    for (std::size_t d = 0; d < tensor.shape.size(); ++d)
      if (box.offsets[d] < 0 || box.offsets[d] + box.sizes[d] > tensor.shape[d])
        wrong_parts(tensor, "a part lies outside");
    for (const auto& other : tensor.boxes)
      if (&other < &box && other.overlaps(box)) wrong_parts(tensor, "parts overlap");
    covered += box.volume();
  }
  if (covered != whole) wrong_parts(tensor, "parts are missing");
}

void add_box(WholeTensor& tensor, int rank, std::size_t number, const Value::List& entry) {
  Box box{rank, number, numbers(entry[0]), numbers(entry[1])};
  if (box.offsets.size() != tensor.shape.size() || box.sizes.size() != tensor.shape.size())
    wrong_parts(tensor, "the part of rank " + std::to_string(rank) + " has another number of dimensions");
  if (box.volume() == 0) return;
  for (const auto& known : tensor.boxes)
    if (known.offsets == box.offsets && known.sizes == box.sizes) return;  // a replica
  tensor.boxes.push_back(std::move(box));
}

void add_boxes(WholeTensor& tensor, int rank, const Value::List& entry) {
  if (numbers(entry[1]) != tensor.shape || entry[2].as_int() != tensor.type)
    wrong_parts(tensor, "rank " + std::to_string(rank) + " knows another shape or type of it");
  const auto& boxes = entry[3].as_list();
  for (std::size_t i = 0; i < boxes.size(); ++i) add_box(tensor, rank, i, boxes[i].as_list());
}

std::vector<WholeTensor> make_plan(const std::vector<Value>& descriptions) {
  std::vector<WholeTensor> plan;
  for (const auto& item : descriptions[0].as_list()) {
    const auto& entry = item.as_list();
    plan.push_back({entry[0].as_string(), numbers(entry[1]), entry[2].as_int(), {}});
  }
  for (std::size_t rank = 0; rank < descriptions.size(); ++rank) {
    const auto& entries = descriptions[rank].as_list();
    bool same = entries.size() == plan.size();
    for (std::size_t i = 0; same && i < plan.size(); ++i) same = entries[i].as_list()[0].as_string() == plan[i].path;
    if (!same)
      throw CheckpointError("the ranks hold parts of different tensors: rank 0 of " + std::to_string(plan.size()) +
                            ", rank " + std::to_string(rank) + " of " + std::to_string(entries.size()) +
                            ". Every rank must save the same entries");
    for (std::size_t i = 0; i < plan.size(); ++i) add_boxes(plan[i], static_cast<int>(rank), entries[i].as_list());
  }
  for (const auto& tensor : plan) require_cover(tensor);
  return plan;
}

at::Tensor box_of(const at::Tensor& whole, const Box& box) {
  at::Tensor view = whole;
  for (std::size_t d = 0; d < box.sizes.size(); ++d)
    view = view.narrow(static_cast<std::int64_t>(d), box.offsets[d], box.sizes[d]);
  return view;
}

at::Tensor memory_for(const WholeTensor& tensor, const at::Tensor& local) {
  return at::empty(tensor.shape, local.options().device(c10::kCPU).requires_grad(false));
}

// On rank 0 the whole tensor, in `whole`; undefined elsewhere.
at::Tensor bring_together(const WholeTensor& tensor, const at::Tensor& local, const Shard& shard,
                          const at::Tensor& whole, const ProcessGroup& group) {
  const int rank = group.rank();
  const auto own = local_boxes(local.detach(), shard);
  if (rank != 0) {
    for (const auto& box : tensor.boxes)
      if (box.rank == rank) group.send(own[box.number].content.contiguous(), 0);
    return {};
  }
  for (const auto& box : tensor.boxes) {
    at::Tensor part;
    if (box.rank == 0) {
      part = own[box.number].content;
    } else {
      part = at::empty(box.sizes, local.options().requires_grad(false));
      group.recv_(part, box.rank);
    }
    box_of(whole, box).copy_(part);
  }
  return whole;
}

void gather_per_rank(StatePart& part, const ProcessGroup& group) {
  for (const auto& key : part.per_rank) {
    Value& entry = part.values.as_map().at(key);
    entry = Value::Map{{"per_rank", Value::List(group.all_gather_value(entry))}};
  }
}

}  // namespace

void require_sound(const StatePart& part) {
  if (part.shards.empty()) return;
  std::set<std::string> seen;
  for_each_leaf_tensor(const_cast<Value&>(part.values), [&](at::Tensor& tensor, const std::string& path) {
    const auto shard = part.shards.find(path);
    if (shard == part.shards.end()) return;
    if (!seen.insert(path).second)
      throw CheckpointError("two entries of the state are called '" + path + "', one of which is spread over ranks");
    boxes_of(path, tensor, shard->second);
  });
  for (const auto& [path, shard] : part.shards)
    if (!seen.contains(path))
      throw CheckpointError("the strategy says that '" + path + "' is spread over ranks, but no tensor is there");
}

WholeState gather_whole_state(StatePart part, const ProcessGroup& group) {
  WholeState whole;
  if (group.size() == 1 && part.shards.empty()) return {std::move(part.values), {}};
  at::NoGradGuard no_grad;
  Tensors tensors = sharded_tensors(part);
  // Also where this rank has none: another may.
  auto plan = make_plan(group.all_gather_value(describe(part, tensors)));
  if (group.size() > 1) gather_per_rank(part, group);
  if (!plan.empty()) {
    Tensors made, memory;
    // What can fail on rank 0 alone comes before the first message: the others would wait for the rest of them.
    run_together(
        group, "memory for the whole state",
        [&] {
          for (const auto& tensor : plan)
            memory.emplace(tensor.path, group.rank() == 0 ? memory_for(tensor, tensors.at(tensor.path)) : at::Tensor());
        },
        ErrorKind::checkpoint);
    for (const auto& tensor : plan) {
      at::Tensor together =
          bring_together(tensor, tensors.at(tensor.path), part.shards.at(tensor.path), memory.at(tensor.path), group);
      if (together.defined()) whole.fresh.insert(together.unsafeGetTensorImpl());
      made.emplace(tensor.path, std::move(together));
    }
    for_each_leaf_tensor(part.values, [&](at::Tensor& tensor, const std::string& path) {
      if (auto found = made.find(path); found != made.end()) tensor = found->second;
    });
  }
  whole.values = std::move(part.values);
  return whole;
}

}  // namespace fabric

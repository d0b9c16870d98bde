// The collectives of Fabric: nested values taken apart, leaf by leaf, into the strategy's operations on tensors.

#include <fabric/fabric.h>

#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/stack.h>

namespace fabric {
namespace {

bool same_shapes(const std::vector<at::Tensor>& tensors) {
  for (const auto& tensor : tensors)
    if (tensor.sizes() != tensors[0].sizes()) return false;
  return true;
}

at::Tensor number_tensor(const Value& value, c10::Device device) {
  auto type = value.is_double() ? at::kDouble : at::kLong;
  c10::Scalar number = value.is_double() ? c10::Scalar(value.as_double())
                                         : c10::Scalar(value.is_bool() ? int64_t{value.as_bool()} : value.as_int());
  return at::scalar_tensor(number, at::TensorOptions().dtype(type).device(device));
}

template <class Leaf>
Value map_leaves(const Value& value, Leaf&& leaf) {
  if (value.is_list()) {
    Value::List list;
    for (const auto& item : value.as_list()) list.push_back(map_leaves(item, leaf));
    return list;
  }
  if (value.is_map()) {
    Value::Map map;
    for (const auto& [key, item] : value.as_map()) map[key] = map_leaves(item, leaf);
    return map;
  }
  return leaf(value);
}

Value reduce_number(const Value& value, ReduceOp op, Strategy& strategy, const ProcessGroup& group) {
  bool whole = !value.is_double() && op != ReduceOp::mean;
  auto tensor = number_tensor(value, strategy.root_device());
  if (!whole) tensor = tensor.to(at::kDouble);
  strategy.all_reduce_(tensor, op, group);
  if (whole) return tensor.item<std::int64_t>();
  return tensor.item<double>();
}

}  // namespace

void Fabric::barrier(const std::string& name) const {
  require_launched("barrier");
  // A rank that waits here is not taken for the one that hangs.
  Section waiting(name.empty() || !has_heartbeat_listener() ? "barrier" : "barrier_" + name);
  strategy()->barrier(name);
}

Value Fabric::broadcast(const Value& value, int src) const {
  require_launched("broadcast");
  return strategy()->broadcast(value, src);
}

at::Tensor Fabric::all_reduce(const at::Tensor& tensor, ReduceOp op, const ProcessGroup& group) const {
  require_launched("all_reduce");
  return strategy()->all_reduce(tensor, op, group);
}

void Fabric::all_reduce_(at::Tensor& tensor, ReduceOp op, const ProcessGroup& group) const {
  require_launched("all_reduce_");
  strategy()->all_reduce_(tensor, op, group);
}

Value Fabric::all_reduce(const Value& value, ReduceOp op, const ProcessGroup& group) const {
  require_launched("all_reduce");
  return map_leaves(value, [&](const Value& leaf) -> Value {
    if (leaf.is<at::Tensor>()) return strategy()->all_reduce(leaf.as<at::Tensor>(), op, group);
    if (leaf.is_bool() || leaf.is_number()) return reduce_number(leaf, op, *strategy(), group);
    return leaf;
  });
}

std::vector<at::Tensor> Fabric::all_gather_list(const at::Tensor& tensor, const ProcessGroup& group,
                                                bool sync_grads) const {
  require_launched("all_gather");
  return strategy()->all_gather(tensor, group, sync_grads);
}

at::Tensor Fabric::all_gather(const at::Tensor& tensor, const ProcessGroup& group, bool sync_grads) const {
  auto parts = all_gather_list(tensor, group, sync_grads);
  if (!same_shapes(parts)) {
    std::ostringstream text;
    text << "all_gather cannot stack tensors of different shapes:";
    for (std::size_t rank = 0; rank < parts.size(); ++rank) text << " rank " << rank << ' ' << parts[rank].sizes();
    text << ". Use all_gather_list, which returns one tensor per rank";
    throw MismatchError(text.str());
  }
  return at::stack(parts);
}

Value Fabric::all_gather(const Value& value, const ProcessGroup& group, bool sync_grads) const {
  require_launched("all_gather");
  return map_leaves(value, [&](const Value& leaf) -> Value {
    if (leaf.is<at::Tensor>() || leaf.is_bool() || leaf.is_number()) {
      auto parts = strategy()->all_gather(leaf.is<at::Tensor>() ? leaf.as<at::Tensor>() : number_tensor(leaf, device()),
                                          group, sync_grads);
      if (same_shapes(parts)) return at::stack(parts);
      return Value::List(parts.begin(), parts.end());
    }
    const auto& over = group ? group : strategy()->process_group();
    return over.all_gather_value(leaf);
  });
}

void Fabric::rank_zero_first(const std::function<void()>& function, bool local) const {
  require_launched("rank_zero_first");
  bool first = local ? local_rank() == 0 : is_global_zero();
  // Each turn ends only when all ranks know how it went: the others do not begin before the first ones are done.
  for (bool turn : {true, false}) {
    std::string elsewhere = strategy()->run_together([&] {
      if (first == turn) function();
    });
    if (!elsewhere.empty()) throw CollectiveError("rank_zero_first failed elsewhere: " + elsewhere);
  }
}

}  // namespace fabric

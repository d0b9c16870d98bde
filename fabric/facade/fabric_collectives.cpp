// The collectives of Fabric: nested values taken apart, leaf by leaf, into the strategy's operations on tensors.

#include <fabric/fabric.h>

#include <algorithm>

#include <ATen/ops/cat.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>

#include "plugins/collectives/waits/activity.h"

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

std::vector<std::string> sorted_keys(const Value::Map& map) {
  std::vector<std::string> keys;
  for (const auto& [key, item] : map) keys.push_back(key);
  std::sort(keys.begin(), keys.end());
  return keys;
}

// Each leaf is an operation of its own, so all ranks have to come to them in the same order: maps are walked by key,
// whatever the order in which a rank filled them.
template <class Leaf>
Value map_leaves(const Value& value, Leaf&& leaf) {
  if (value.is_list()) {
    Value::List list;
    for (const auto& item : value.as_list()) list.push_back(map_leaves(item, leaf));
    return list;
  }
  if (value.is_map()) {
    const auto& given = value.as_map();
    Value::Map map = given;
    for (const auto& key : sorted_keys(given)) map[key] = map_leaves(given.at(key), leaf);
    return map;
  }
  return leaf(value);
}

/// "{acc: number, list: [tensor, other]}": what ranks have to agree on.
std::string outline(const Value& value) {
  std::string text;
  auto add = [&](const std::string& part) { text += (text.empty() ? "" : ", ") + part; };
  if (value.is_list()) {
    for (const auto& item : value.as_list()) add(outline(item));
    return "[" + text + "]";
  }
  if (value.is_map()) {
    for (const auto& key : sorted_keys(value.as_map())) add(key + ": " + outline(value.at(key)));
    return "{" + text + "}";
  }
  if (value.is<at::Tensor>()) return "tensor";
  return value.is_bool() || value.is_number() ? "number" : "other";
}

// Without it a leaf would meet another one of the other ranks, or none.
void require_same_outline(const char* operation, const Value& value, const ProcessGroup& over) {
  bool is_one_operation = value.is<at::Tensor>() || value.is_bool() || value.is_number();
  if (is_one_operation || over.size() == 1 || !over.config().check) return;
  over.require_same(operation, outline(value));
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
  require_same_outline("all_reduce", value, group.is_set() ? group : strategy()->process_group());
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
  const auto& over = group.is_set() ? group : strategy()->process_group();
  require_same_outline("all_gather", value, over);
  return map_leaves(value, [&](const Value& leaf) -> Value {
    if (leaf.is<at::Tensor>() || leaf.is_bool() || leaf.is_number()) {
      auto parts = strategy()->all_gather(leaf.is<at::Tensor>() ? leaf.as<at::Tensor>() : number_tensor(leaf, device()),
                                          group, sync_grads);
      if (same_shapes(parts)) return at::stack(parts);
      return Value::List(parts.begin(), parts.end());
    }
    return over.all_gather_value(leaf);
  });
}

namespace {

struct RankBatch {
  std::int64_t samples = 0;
  std::int64_t repeated = 0;
};

// Of the last batch; what goes wrong on one rank is told to all.
std::vector<RankBatch> batches_of_ranks(const detail::LoaderCore& loader, const ProcessGroup& group) {
  RankBatch own;
  std::exception_ptr failure;
  std::string text;
  try {
    own.repeated = static_cast<std::int64_t>(loader.repeated_samples());
    own.samples = static_cast<std::int64_t>(loader.last_batch_size());
  } catch (const std::exception& error) {
    failure = std::current_exception();
    text = error.what();
  }
  auto all = group.all_gather_value(Value(Value::List{own.samples, own.repeated, text}));
  if (failure) std::rethrow_exception(failure);
  std::vector<RankBatch> batches;
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    const auto& each = all[rank].as_list();
    if (!each[2].as_string().empty())
      throw MisuseError("gather_for_metrics failed on rank " + std::to_string(rank) + ": " + each[2].as_string());
    batches.push_back({each[0].as_int(), each[1].as_int()});
  }
  return batches;
}

// The rows of all ranks, dealt out in turn as the samples were.
at::Tensor interleaved(const std::vector<at::Tensor>& parts) {
  std::vector<std::int64_t> order, begins;
  std::int64_t longest = 0, begin = 0;
  for (const auto& part : parts) {
    begins.push_back(begin);
    begin += part.size(0);
    longest = std::max(longest, part.size(0));
  }
  for (std::int64_t row = 0; row < longest; ++row)
    for (std::size_t rank = 0; rank < parts.size(); ++rank)
      if (row < parts[rank].size(0)) order.push_back(begins[rank] + row);
  auto all = at::cat(parts);
  return all.index_select(0, at::tensor(order, at::kLong).to(all.device()));
}

}  // namespace

Value Fabric::gather_rows(const detail::LoaderCore& loader, const Value& value) const {
  require_launched("gather_for_metrics");
  collectives::Task task("gather_for_metrics");
  auto batches = batches_of_ranks(loader, strategy()->process_group());
  require_same_outline("gather_for_metrics", value, strategy()->process_group());
  return map_leaves(value, [&](const Value& leaf) -> Value {
    bool is_number = leaf.is_bool() || leaf.is_number();
    if (!is_number && !leaf.is<at::Tensor>())
      throw MisuseError("gather_for_metrics takes tensors and numbers, and lists and maps of them; given " +
                        to_string(leaf));
    auto tensor = is_number ? number_tensor(leaf, device()) : leaf.as<at::Tensor>();
    bool is_scalar = tensor.dim() == 0;
    auto parts = strategy()->all_gather(is_scalar ? tensor.reshape({1}) : tensor);
    for (std::size_t rank = 0; rank < parts.size(); ++rank) {
      auto [samples, repeated] = batches[rank];
      if (repeated == 0) continue;
      auto rows = parts[rank].size(0);
      if (!is_scalar && rows != samples)
        throw MisuseError("gather_for_metrics: a tensor of rank " + std::to_string(rank) + " has " +
                          std::to_string(rows) + " rows, but its batch has " + std::to_string(samples) +
                          " samples, of which the last " + std::to_string(repeated) +
                          " are to be left out. Give one row for each sample");
      // A scalar stands for the whole batch.
      auto kept = is_scalar ? std::int64_t{samples > repeated} : samples - repeated;
      parts[rank] = parts[rank].narrow(0, 0, kept);
    }
    return interleaved(parts);
  });
}

void Fabric::rank_zero_first(const std::function<void()>& function, bool local) const {
  require_launched("rank_zero_first");
  bool first = local ? local_rank() == 0 : is_global_zero();
  // Each turn ends only when all ranks know how it went: the others do not begin before the first ones are done.
  for (bool turn : {true, false}) {
    strategy()->run_together("rank_zero_first", [&] {
      if (first == turn) function();
    });
  }
}

}  // namespace fabric

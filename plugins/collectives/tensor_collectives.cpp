// The operations on tensors: each checks its arguments, compares them over the ranks, brings the tensors into the form
// that the backend knows, and waits.
#include <fabric/plugins/collectives/process_group.h>

#include <algorithm>

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>

#include "fabric/base/value_codec_internal.h"
#include "plugins/collectives/check.h"
#include "plugins/collectives/group.h"
#include "plugins/collectives/reducible.h"
#include "plugins/collectives/shapes.h"

namespace fabric {

using namespace collectives;

namespace {

// What travels: on the CPU when no backend carries the tensor's own device.
at::Tensor outgoing(const Group& group, const at::Tensor& tensor) {
  return bytes_of(group.transport.needs_staging(tensor) ? tensor.cpu() : tensor);
}

// Less is not worth the look for a better place.
constexpr std::int64_t kLarge = 16 * 1024;

// Where the group moves tensors best.
at::Tensor empty_in(const Group& group, at::IntArrayRef sizes, const at::TensorOptions& options) {
  const auto bytes = c10::multiply_integers(sizes) * static_cast<std::int64_t>(options.dtype().itemsize());
  auto plain = options.requires_grad(false);
  if (bytes < kLarge || group.id.size == 1) return at::empty(sizes, plain);
  return group.transport.of(options.device()).empty(sizes, plain);
}

at::Tensor buffer_like(const Group& group, const at::Tensor& bytes, std::int64_t size) {
  return empty_in(group, {size}, bytes.options());
}

// A copy of all, one behind the other.
at::Tensor joined(const Group& group, const std::vector<at::Tensor>& flat) {
  std::int64_t items = 0;
  for (const auto& each : flat) items += each.numel();
  auto all = empty_in(group, {items}, flat[0].options());
  return at::cat_out(all, flat);
}

at::Tensor copy_of(const Group& group, const at::Tensor& tensor) {
  return empty_in(group, tensor.sizes(), tensor.options()).copy_(tensor.detach());
}

// A tensor of `like`'s type and device over bytes that arrived; shares their memory where the device is the same. No
// view in autograd's sense, so that the caller may write to it like to any new tensor.
at::Tensor incoming(const at::Tensor& bytes, at::IntArrayRef sizes, const at::Tensor& like) {
  auto here = bytes.to(like.device());
  std::vector<std::int64_t> strides(sizes.size());
  std::int64_t step = 1;
  for (auto i = static_cast<std::int64_t>(sizes.size()) - 1; i >= 0; --i) {
    strides[i] = step;
    step *= std::max<std::int64_t>(sizes[i], 1);
  }
  auto tensor = at::empty({0}, at::TensorOptions(like.device()).dtype(like.dtype()));
  auto offset = here.storage_offset() / static_cast<std::int64_t>(tensor.element_size());
  return tensor.set_(here.storage(), offset, sizes, strides);
}

void reduce_in_place(Group& group, at::Tensor& tensor, ReduceOp op, const char* operation) {
  at::AutoGradMode no_grad(false);
  auto reducible = make_reducible(group, tensor, op, operation);
  group.run(operation, size_of(reducible.buffer), [&] {
    group.one.assign(1, reducible.buffer);
    c10d::AllreduceOptions options;
    options.reduceOp = reducible.op;
    options.asyncOp = false;
    return group.transport.carrier(reducible.buffer).allreduce(group.one, options);
  });
  group.one.clear();
  reducible.store_in(tensor, group.id.size);
}

// One flat buffer with `size` bytes of each rank.
at::Tensor gather_bytes(Group& group, const char* operation, at::Tensor mine) {
  auto all = buffer_like(group, mine, mine.numel() * group.id.size);
  if (all.numel() > 0)
    group.run(operation, size_of(mine), [&] { return group.transport.carrier(mine)._allgather_base(all, mine); });
  return all;
}

void broadcast_bytes(Group& group, const char* operation, at::Tensor& bytes, int src) {
  if (bytes.numel() == 0) return;
  group.run(operation, size_of(bytes), [&] {
    group.one.assign(1, bytes);
    c10d::BroadcastOptions options;
    options.rootRank = src;
    options.asyncOp = false;
    return group.transport.carrier(bytes).broadcast(group.one, options);
  });
  group.one.clear();
}

std::vector<at::Tensor> split_evenly(const at::Tensor& flat, const at::Tensor& like, int size) {
  std::vector<at::Tensor> parts;
  for (int rank = 0; rank < size; ++rank) {
    auto each = flat.numel() / size;
    parts.push_back(incoming(flat.narrow(0, rank * each, each), like.sizes(), like));
  }
  return parts;
}

}  // namespace

void ProcessGroup::all_reduce_(at::Tensor& tensor, ReduceOp op) const {
  auto& group = use("all_reduce");
  require_dense("all_reduce", tensor);
  verify(group, {.operation = "all_reduce", .tensor = &tensor, .op = static_cast<int>(op)});
  if (group.id.size == 1 || tensor.numel() == 0) return;
  reduce_in_place(group, tensor, op, "all_reduce");
}

at::Tensor ProcessGroup::all_reduce(const at::Tensor& tensor, ReduceOp op) const {
  require_dense("all_reduce", tensor);
  at::AutoGradMode no_grad(false);
  auto result = copy_of(use("all_reduce"), tensor);
  all_reduce_(result, op);
  return result;
}

at::Tensor ProcessGroup::reduce(const at::Tensor& tensor, ReduceOp op, int dst) const {
  auto& group = use("reduce");
  require_dense("reduce", tensor);
  require_rank("reduce", "dst", dst, group.id.size);
  verify(group, {.operation = "reduce", .tensor = &tensor, .op = static_cast<int>(op), .root = dst});
  at::AutoGradMode no_grad(false);
  auto result = copy_of(group, tensor);
  if (group.id.size > 1 && tensor.numel() > 0) {
    auto reducible = make_reducible(group, result, op, "reduce");
    group.run("reduce", size_of(reducible.buffer), [&] {
      group.one.assign(1, reducible.buffer);
      c10d::ReduceOptions options;
      options.reduceOp = reducible.op;
      options.rootRank = dst;
      options.asyncOp = false;
      return group.transport.carrier(reducible.buffer).reduce(group.one, options);
    });
    group.one.clear();
    if (group.id.rank == dst) reducible.store_in(result, group.id.size);
  }
  return group.id.rank == dst ? result : at::Tensor();
}

void ProcessGroup::broadcast_(at::Tensor& tensor, int src) const {
  auto& group = use("broadcast");
  require_dense("broadcast", tensor);
  require_rank("broadcast", "src", src, group.id.size);
  verify(group, {.operation = "broadcast", .tensor = &tensor, .root = src});
  if (group.id.size == 1 || tensor.numel() == 0) return;
  at::AutoGradMode no_grad(false);
  auto bytes = outgoing(group, tensor);
  broadcast_bytes(group, "broadcast", bytes, src);
  if (group.id.rank != src && bytes.data_ptr() != tensor.data_ptr()) {
    auto arrived = incoming(bytes, tensor.sizes(), tensor);
    tensor.copy_(arrived);
  }
}

std::vector<at::Tensor> ProcessGroup::all_gather(const at::Tensor& tensor, bool uneven) const {
  auto& group = use("all_gather");
  require_dense("all_gather", tensor);
  verify(group,
         {.operation = uneven ? "all_gather (unequal shapes)" : "all_gather", .tensor = &tensor, .any_shape = uneven});
  at::AutoGradMode no_grad(false);
  if (group.id.size == 1) return {tensor.detach().clone(at::MemoryFormat::Contiguous)};
  auto mine = outgoing(group, tensor);
  if (!uneven) return split_evenly(gather_bytes(group, "all_gather", mine), tensor, group.id.size);

  auto shapes = exchange_shapes(group, "all_gather", {&tensor, 1});
  std::int64_t longest = 0;
  for (const auto& shape : shapes) longest = std::max(longest, shape.front().bytes);
  auto padded = mine;
  if (mine.numel() < longest) {
    padded = buffer_like(group, mine, longest);
    padded.narrow(0, 0, mine.numel()).copy_(mine);
    padded.narrow(0, mine.numel(), longest - mine.numel()).zero_();
  }
  auto flat = gather_bytes(group, "all_gather", padded);
  std::vector<at::Tensor> parts;
  for (int rank = 0; rank < group.id.size; ++rank) {
    const auto& shape = shapes[rank].front();
    parts.push_back(incoming(flat.narrow(0, rank * longest, shape.bytes), shape.sizes, tensor));
  }
  return parts;
}

std::vector<at::Tensor> ProcessGroup::gather(const at::Tensor& tensor, int dst) const {
  auto& group = use("gather");
  require_dense("gather", tensor);
  require_rank("gather", "dst", dst, group.id.size);
  verify(group, {.operation = "gather", .tensor = &tensor, .root = dst});
  at::AutoGradMode no_grad(false);
  if (group.id.size == 1) return {tensor.detach().clone(at::MemoryFormat::Contiguous)};
  std::vector<at::Tensor> mine{outgoing(group, tensor)};
  std::vector<std::vector<at::Tensor>> outputs;
  at::Tensor flat;
  if (group.id.rank == dst) {
    flat = buffer_like(group, mine[0], mine[0].numel() * group.id.size);
    outputs.emplace_back();
    for (int rank = 0; rank < group.id.size; ++rank)
      outputs[0].push_back(flat.narrow(0, rank * mine[0].numel(), mine[0].numel()));
  }
  if (mine[0].numel() > 0)
    group.run("gather", size_of(mine[0]), [&] {
      c10d::GatherOptions options;
      options.rootRank = dst;
      return group.transport.carrier(mine[0]).gather(outputs, mine, options);
    });
  return group.id.rank == dst ? split_evenly(flat, tensor, group.id.size) : std::vector<at::Tensor>();
}

at::Tensor ProcessGroup::scatter(const std::vector<at::Tensor>& inputs, const at::Tensor& like, int src) const {
  auto& group = use("scatter");
  require_dense("scatter", like);
  require_rank("scatter", "src", src, group.id.size);
  if (group.id.rank == src) require_one_per_rank(group, "scatter", inputs, &like);
  verify(group, {.operation = "scatter", .tensor = &like, .root = src});
  at::AutoGradMode no_grad(false);
  if (group.id.size == 1) return inputs[0].detach().clone(at::MemoryFormat::Contiguous);
  std::vector<std::vector<at::Tensor>> parts;
  if (group.id.rank == src) {
    parts.emplace_back();
    for (const auto& input : inputs) parts[0].push_back(outgoing(group, input));
  }
  std::vector<at::Tensor> arrived{outgoing(group, at::empty_like(like, at::MemoryFormat::Contiguous))};
  if (arrived[0].numel() > 0)
    group.run("scatter", size_of(arrived[0]), [&] {
      c10d::ScatterOptions options;
      options.rootRank = src;
      return group.transport.carrier(arrived[0]).scatter(arrived, parts, options);
    });
  return incoming(arrived[0], like.sizes(), like);
}

at::Tensor ProcessGroup::reduce_scatter(const std::vector<at::Tensor>& inputs, ReduceOp op) const {
  auto& group = use("reduce_scatter");
  require_one_per_rank(group, "reduce_scatter", inputs, nullptr);
  std::string shapes;
  if (group.id.config.check)
    for (const auto& input : inputs) shapes += c10::str(input.sizes());
  verify(group, {.operation = "reduce_scatter", .tensor = &inputs[0], .op = static_cast<int>(op), .label = &shapes});
  at::AutoGradMode no_grad(false);
  const auto& own = inputs[group.id.rank];
  if (group.id.size == 1) return own.detach().clone(at::MemoryFormat::Contiguous);
  std::vector<at::Tensor> flat_inputs;
  for (const auto& input : inputs) flat_inputs.push_back(input.detach().reshape({-1}));
  auto reducible = make_reducible(group, joined(group, flat_inputs), op, "reduce_scatter");
  auto result = at::empty(own.sizes(), own.options().requires_grad(false).memory_format(at::MemoryFormat::Contiguous));
  bool even = std::all_of(inputs.begin(), inputs.end(), [&](const auto& each) { return each.numel() == own.numel(); });
  auto& carrier = group.transport.carrier(reducible.buffer);
  std::int64_t per_item = own.is_complex() ? 2 : 1;
  if (reducible.buffer.numel() == 0) return result;
  if (even) {
    auto input = reducible.buffer.reshape({-1});
    auto output = at::empty({own.numel() * per_item}, input.options());
    group.run("reduce_scatter", size_of(input), [&] {
      c10d::ReduceScatterOptions options;
      options.reduceOp = reducible.op;
      return carrier._reduce_scatter_base(output, input, options);
    });
    reducible.buffer = own.is_complex() ? output.view({-1, 2}) : output;
  } else {
    group.run("reduce_scatter", size_of(reducible.buffer), [&] {
      group.one.assign(1, reducible.buffer);
      c10d::AllreduceOptions options;
      options.reduceOp = reducible.op;
      return carrier.allreduce(group.one, options);
    });
    group.one.clear();
    std::int64_t before = 0;
    for (int rank = 0; rank < group.id.rank; ++rank) before += inputs[rank].numel();
    reducible.buffer = reducible.buffer.narrow(0, before, own.numel()).contiguous();
  }
  auto flat_result = result.view({-1});
  reducible.store_in(flat_result, group.id.size);
  return result;
}

std::vector<at::Tensor> ProcessGroup::all_to_all(const std::vector<at::Tensor>& inputs) const {
  auto& group = use("all_to_all");
  require_one_per_rank(group, "all_to_all", inputs, nullptr, /*any_shape=*/true);
  verify(group, {.operation = "all_to_all", .tensor = &inputs[0], .any_shape = true});
  at::AutoGradMode no_grad(false);
  if (group.id.size == 1) return {inputs[0].detach().clone(at::MemoryFormat::Contiguous)};
  auto shapes = exchange_shapes(group, "all_to_all", inputs);
  std::vector<at::Tensor> bytes;
  std::vector<std::int64_t> sent, received;
  std::int64_t total = 0;
  for (int rank = 0; rank < group.id.size; ++rank) {
    bytes.push_back(outgoing(group, inputs[rank]));
    sent.push_back(bytes.back().numel());
    received.push_back(shapes[rank][group.id.rank].bytes);
    total += received.back();
  }
  auto input = joined(group, bytes);
  auto output = buffer_like(group, input, total);
  auto splits = received;  // LibTorch may take the lists' contents
  group.run("all_to_all", [&] { return group.transport.carrier(input).alltoall_base(output, input, splits, sent); });
  std::vector<at::Tensor> parts;
  std::int64_t begin = 0;
  for (int rank = 0; rank < group.id.size; ++rank) {
    parts.push_back(incoming(output.narrow(0, begin, received[rank]), shapes[rank][group.id.rank].sizes, inputs[0]));
    begin += received[rank];
  }
  return parts;
}

void ProcessGroup::barrier(const std::string& name) const {
  auto& group = use("barrier");
  verify(group, {.operation = "barrier", .label = &name});
  // A check on the CPU's backend has already waited for everybody; what is queued on a device needs its own.
  if (group.id.size == 1 || (group.id.config.check && !group.transport.on_device)) return;
  group.run("barrier", [&] {
    c10d::BarrierOptions options;
    if (!group.transport.on_device) return group.transport.cpu->c10d()->barrier(options);
    if (group.id.device.has_index()) options.device_ids.push_back(group.id.device.index());
    return group.transport.on_device->c10d()->barrier(options);
  });
}

}  // namespace fabric

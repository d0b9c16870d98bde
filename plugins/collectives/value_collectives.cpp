// The operations on nested values and on yes-or-no questions.
#include <fabric/plugins/collectives/process_group.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include "fabric/base/value_codec_internal.h"
#include "plugins/collectives/check.h"
#include "plugins/collectives/group.h"
#include "plugins/collectives/reducible.h"

namespace fabric {

using namespace collectives;

namespace {

constexpr std::int64_t kInlineLimit = 64 << 10;
// The first message holds the length and, for small values, all of it: one round trip then.
constexpr std::int64_t kFirstMessage = 1024;
constexpr std::int64_t kLengthBytes = sizeof(std::int64_t);

void broadcast_bytes(Group& group, at::Tensor bytes, int src) {
  group.run("broadcast of a value", [&] {
    group.one.assign(1, std::move(bytes));
    c10d::BroadcastOptions options;
    options.rootRank = src;
    options.asyncOp = false;
    return group.transport.cpu->c10d()->broadcast(group.one, options);
  });
  group.one.clear();
}

// Fills a contiguous tensor with that of `src`.
void broadcast_large(Group& group, const at::Tensor& tensor, int src) {
  bool staged = group.transport.needs_staging(tensor);
  auto bytes = bytes_of(staged ? tensor.cpu() : tensor);
  group.run("broadcast of a value", [&] {
    group.one.assign(1, bytes);
    c10d::BroadcastOptions options;
    options.rootRank = src;
    return group.transport.carrier(bytes).broadcast(group.one, options);
  });
  group.one.clear();
  if (staged && group.id.rank != src) bytes_of(tensor).copy_(bytes);
}

// The encoded bytes of `src`, on every rank.
std::vector<std::uint8_t> broadcast_encoded(Group& group, std::vector<std::uint8_t> bytes, int src) {
  auto first = at::zeros({kFirstMessage}, at::kByte);
  auto* data = first.mutable_data_ptr<std::uint8_t>();
  auto length = static_cast<std::int64_t>(bytes.size());
  if (group.id.rank == src) {
    std::memcpy(data, &length, kLengthBytes);
    std::memcpy(data + kLengthBytes, bytes.data(), std::min<std::int64_t>(length, kFirstMessage - kLengthBytes));
  }
  broadcast_bytes(group, first, src);
  std::memcpy(&length, data, kLengthBytes);
  if (length <= kFirstMessage - kLengthBytes) return {data + kLengthBytes, data + kLengthBytes + length};
  auto rest = at::empty({length}, at::kByte);
  if (group.id.rank == src) std::memcpy(rest.mutable_data_ptr(), bytes.data(), bytes.size());
  broadcast_bytes(group, rest, src);
  const auto* begin = rest.const_data_ptr<std::uint8_t>();
  return {begin, begin + length};
}

// Whether any rank says so, by the one reduction that every backend has.
bool reduce_decision(Group& group, bool decision, const char* operation) {
  verify(group, {.operation = operation});
  if (group.id.size == 1) return decision;
  auto answer = at::empty({1}, at::kLong);
  *answer.mutable_data_ptr<std::int64_t>() = decision ? 1 : 0;
  group.run(operation, [&] {
    group.one.assign(1, answer);
    c10d::AllreduceOptions options;
    options.reduceOp = c10d::ReduceOp::MAX;
    options.asyncOp = false;
    return group.transport.cpu->c10d()->allreduce(group.one, options);
  });
  group.one.clear();
  return *answer.const_data_ptr<std::int64_t>() != 0;
}

}  // namespace

Value ProcessGroup::broadcast_value(const Value& value, int src) const {
  auto& group = use("broadcast");
  require_rank("broadcast", "src", src, group.id.size);
  at::AutoGradMode no_grad(false);
  std::vector<at::Tensor> large;
  std::vector<std::uint8_t> bytes;
  if (group.id.rank == src && group.id.size > 1) bytes = encode(value, kInlineLimit, large);
  verify(group, {.operation = "broadcast of a value", .root = src});
  if (group.id.size == 1) return value;
  bytes = broadcast_encoded(group, std::move(bytes), src);
  Value result = value;
  if (group.id.rank != src) result = decode(bytes.data(), bytes.size(), group.id.device, large);
  for (const auto& tensor : large) broadcast_large(group, tensor, src);
  return result;
}

std::vector<Value> ProcessGroup::all_gather_value(const Value& value) const {
  auto& group = use("all_gather");
  at::AutoGradMode no_grad(false);
  std::vector<at::Tensor> none;
  auto bytes = encode(value, std::numeric_limits<std::int64_t>::max(), none);
  verify(group, {.operation = "all_gather of a value"});
  if (group.id.size == 1) return {value};
  auto lengths = at::empty({group.id.size}, at::kLong);
  auto length = at::empty({1}, at::kLong);
  *length.mutable_data_ptr<std::int64_t>() = static_cast<std::int64_t>(bytes.size());
  group.run("all_gather of a value", [&] { return group.transport.cpu->c10d()->_allgather_base(lengths, length); });
  const auto* each = lengths.const_data_ptr<std::int64_t>();
  auto longest = *std::max_element(each, each + group.id.size);
  auto mine = at::zeros({longest}, at::kByte);
  std::memcpy(mine.mutable_data_ptr(), bytes.data(), bytes.size());
  auto all = at::empty({group.id.size * longest}, at::kByte);
  group.run("all_gather of a value", [&] { return group.transport.cpu->c10d()->_allgather_base(all, mine); });
  std::vector<Value> values;
  const auto* begin = all.const_data_ptr<std::uint8_t>();
  for (int rank = 0; rank < group.id.size; ++rank)
    values.push_back(decode(begin + rank * longest, static_cast<std::size_t>(each[rank]), group.id.device, none));
  return values;
}

bool ProcessGroup::all(bool decision) const { return !reduce_decision(use("all"), !decision, "all"); }

bool ProcessGroup::any(bool decision) const { return reduce_decision(use("any"), decision, "any"); }

}  // namespace fabric

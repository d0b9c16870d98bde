#include "plugins/collectives/check.h"

#include <limits>
#include <sstream>

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include "plugins/collectives/mismatch_lines.h"

namespace fabric::collectives {
namespace {

// splitmix64's finaliser: cheap, and every bit of the input reaches every bit of the result.
std::uint64_t mixed(std::uint64_t hash, std::uint64_t value) {
  hash ^= value + 0x9e3779b97f4a7c15ull + (hash << 6) + (hash >> 2);
  hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9ull;
  hash = (hash ^ (hash >> 27)) * 0x94d049bb133111ebull;
  return hash ^ (hash >> 31);
}

std::uint64_t mixed(std::uint64_t hash, std::string_view text) {
  for (char letter : text) hash = (hash ^ static_cast<unsigned char>(letter)) * 0x100000001b3ull;
  return mixed(hash, text.size());
}

// Positive and with room for its negative.
std::int64_t fingerprint_of(const Call& call) {
  auto hash = mixed(0, std::string_view(call.operation));
  if (const char* task = Activity::of_process().task()) hash = mixed(hash, std::string_view(task));
  hash = mixed(hash, static_cast<std::uint64_t>(call.op + 1) << 32 | static_cast<std::uint32_t>(call.root + 1));
  if (call.label) hash = mixed(hash, *call.label);
  if (call.tensor) {
    const auto& tensor = *call.tensor;
    hash = mixed(hash, static_cast<std::uint64_t>(tensor.scalar_type()) << 32 |
                           static_cast<std::uint64_t>(tensor.device().type()) << 16 |
                           static_cast<std::uint64_t>(tensor.dim()));
    if (!call.any_shape)
      for (auto size : tensor.sizes()) hash = mixed(hash, static_cast<std::uint64_t>(size));
  }
  return static_cast<std::int64_t>(hash >> 2);
}

// Every rank comes here after a mismatch, so this exchange cannot hang on one of them. Where the backend finds
// mismatches by itself that includes ranks which met the others unchecked: they make the same exchange.
[[noreturn]] void throw_mismatch(Group& group, const std::string& own_line, const char* advice = "") {
  throw_exchanged_lines(
      group.id.rank, group.id.size, own_line, advice, [&](const void* line, void* lines, std::int64_t bytes) {
        auto mine = at::from_blob(const_cast<void*>(line), {bytes}, at::kByte);
        auto all = at::from_blob(lines, {bytes * group.id.size}, at::kByte);
        group.run("comparing operations", [&] { return group.transport.cpu->c10d()->_allgather_base(all, mine); });
      });
}

[[noreturn]] void throw_mismatch(Group& group, const Call& call) {
  throw_mismatch(group, Activity::of_process().within_task(describe(call)),
                 call.tensor && !call.any_shape ? ", or all_gather, which takes unequal shapes" : "");
}

// Says in which call's check a wait is.
struct Checked {
  Group& group;
  Checked(Group& group, const Call& call) : group(group) { group.checked = &call; }
  ~Checked() { group.checked = nullptr; }
};

// As CollectiveBackend::agree, but so that a wait which lasts is looked into. Other than one and its negative the two
// marks are no rank's, and make all ranks see a difference.
bool agree_watched(Group& group, const Call& call, const char* operation, std::int64_t mark, std::int64_t negative) {
  Checked checked(group, call);
  if (!group.marks.defined()) group.marks = at::empty({2}, at::kLong);
  auto* both = group.marks.mutable_data_ptr<std::int64_t>();
  both[0] = mark;
  both[1] = negative;
  group.run(operation, [&] {
    group.one.assign(1, group.marks);
    c10d::AllreduceOptions options;
    options.reduceOp = c10d::ReduceOp::MAX;
    options.asyncOp = false;
    return group.transport.cpu->c10d()->allreduce(group.one, options);
  });
  group.one.clear();
  return both[0] == -both[1];
}

const char* name_of(ReduceOp op) {
  switch (op) {
    case ReduceOp::mean:
      return "mean";
    case ReduceOp::sum:
      return "sum";
    case ReduceOp::min:
      return "min";
    case ReduceOp::max:
      return "max";
    case ReduceOp::product:
      return "product";
  }
  return "?";
}

}  // namespace

std::string describe(const Call& call) {
  std::ostringstream text;
  text << call.operation;
  if (call.label && !call.label->empty()) text << "(\"" << *call.label << "\")";
  if (call.op >= 0) text << '(' << name_of(static_cast<ReduceOp>(call.op)) << ')';
  if (call.tensor) text << " of " << call.tensor->scalar_type() << ' ' << call.tensor->sizes();
  if (call.tensor && !call.tensor->is_cpu()) text << " on " << call.tensor->device().type();
  if (call.root >= 0) text << ", root " << call.root;
  return text.str();
}

void verify(Group& group, const Call& call) {
  group.health.require_usable(call.operation);
  if (!group.id.config.check || group.id.size == 1) return;
  auto mark = fingerprint_of(call);
  bool same = true;
  if (group.board)
    same = agree_watched(group, call, call.operation, mark, -mark);
  else
    group.run(call.operation, [&]() -> c10::intrusive_ptr<c10d::Work> {
      same = group.transport.cpu->agree(mark, call.operation);
      return nullptr;
    });
  if (!same) [[unlikely]]
    throw_mismatch(group, call);
}

void come_to_check(Group& group, const std::string& what) {
  Call call{.operation = what.c_str()};
  constexpr auto kLargest = std::numeric_limits<std::int64_t>::max();
  agree_watched(group, call, "comparing operations", kLargest, kLargest);
  throw_mismatch(group, what);
}

void require_dense(const char* operation, const at::Tensor& tensor) {
  if (!tensor.defined())
    throw MisuseError(std::string(operation) + " got an undefined tensor; every rank has to pass a tensor");
  if (tensor.layout() != at::kStrided)
    throw MisuseError(std::string(operation) + " takes dense tensors; this one's layout is " +
                      c10::str(tensor.layout()) + ". Convert it with to_dense() first");
}

void require_rank(const char* operation, const char* what, int rank, int size) {
  if (rank < 0 || rank >= size)
    throw MisuseError(std::string(operation) + ": " + what + " is " + std::to_string(rank) +
                      "; the group has ranks 0 to " + std::to_string(size - 1));
}

}  // namespace fabric::collectives

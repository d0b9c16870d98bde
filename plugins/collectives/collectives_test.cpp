// Every operation, over Gloo and over MPI.
#include <torch/torch.h>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <fabric/plugins/collectives/process_group.h>

#include "tests/support/group_of_ranks.h"

using at::Tensor;
using fabric::ReduceOp;
using fabric::Value;

namespace {

const ReduceOp kOps[] = {ReduceOp::mean, ReduceOp::sum, ReduceOp::min, ReduceOp::max, ReduceOp::product};

Tensor sample(int rank, at::ScalarType type) { return torch::tensor({1.0 + rank, 3.0 - rank, 2.0}).to(type); }

// What one process computes from all ranks' samples.
Tensor expected(ReduceOp op, int size, at::ScalarType type) {
  auto wide = at::isFloatingType(type) ? at::kDouble : at::kLong;
  std::vector<Tensor> all;
  for (int rank = 0; rank < size; ++rank) all.push_back(sample(rank, type).to(wide));
  auto stacked = torch::stack(all);
  switch (op) {
    case ReduceOp::mean:
      return wide == at::kDouble ? stacked.mean(0).to(type) : stacked.sum(0).div(size, "trunc").to(type);
    case ReduceOp::sum:
      return stacked.sum(0).to(type);
    case ReduceOp::min:
      return std::get<0>(stacked.min(0)).to(type);
    case ReduceOp::max:
      return std::get<0>(stacked.max(0)).to(type);
    case ReduceOp::product:
      return stacked.prod(0).to(type);
  }
  return {};
}

bool close(const Tensor& a, const Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         torch::allclose(a.to(at::kDouble), b.to(at::kDouble), 1e-2, 1e-2);
}

}  // namespace

ALL_BACKENDS_TEST("every type is reduced by every operation", "[collectives]", 3) {
  auto group = ranks::group_from_env();
  RANK_CHECK(group.rank() == rank && group.size() == 3);
  for (auto type : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16, at::kChar, at::kByte, at::kShort, at::kInt,
                    at::kLong, at::kUInt16, at::kUInt32}) {
    for (auto op : kOps) {
      auto result = group.all_reduce(sample(rank, type), op);
      if (!close(result, expected(op, 3, type)))
        ranks::fail(__FILE__, __LINE__,
                    c10::str("type ", type, " op ", int(op), " gave ", result, " for ", expected(op, 3, type)));
    }
  }
  auto fp8 = group.all_reduce(torch::full({4}, 0.5).to(at::kFloat8_e4m3fn), ReduceOp::sum);
  RANK_CHECK(fp8.to(at::kFloat).sum().item<float>() == 6.0f);
  auto flags = torch::tensor({rank == 0, true, false});
  RANK_CHECK(torch::equal(group.all_reduce(flags, ReduceOp::sum), torch::tensor({true, true, false})));
  RANK_CHECK(torch::equal(group.all_reduce(flags, ReduceOp::min), torch::tensor({false, true, false})));
  auto complex = torch::complex(torch::full({2}, 1.0 + rank), torch::full({2}, -1.0));
  RANK_CHECK(torch::equal(group.all_reduce(complex, ReduceOp::mean),
                          torch::complex(torch::full({2}, 2.0), torch::full({2}, -1.0))));
  bool refused = false;
  try {
    group.all_reduce(complex, ReduceOp::max);
  } catch (const fabric::MisuseError&) {
    refused = true;
  }
  RANK_CHECK(refused);
  // In place, through a view with strides, on a leaf that autograd watches.
  auto whole = torch::full({4, 3}, 1.0 + rank, torch::requires_grad());
  {
    torch::NoGradGuard guard;
    auto column = whole.select(1, 1);
    group.all_reduce_(column, ReduceOp::sum);
  }
  RANK_CHECK(whole.select(1, 1).sum().item<double>() == 24 &&
             whole.select(1, 0).sum().item<double>() == 4.0 * (1 + rank));
  auto scalar = torch::tensor(double(rank));
  group.all_reduce_(scalar, ReduceOp::max);
  RANK_CHECK(scalar.item<double>() == 2);
  auto nothing = torch::empty({0, 4});
  group.all_reduce_(nothing, ReduceOp::sum);
  group.shutdown();
}

ALL_BACKENDS_TEST("tensors are moved between ranks", "[collectives]", 3) {
  auto group = ranks::group_from_env();
  for (auto type : {at::kFloat, at::kBool, at::kShort, at::kComplexFloat, at::kBFloat16}) {
    auto mine = torch::tensor({rank % 2 == 0, true, false}).to(type).view({1, 3});
    auto parts = group.all_gather(mine);
    RANK_CHECK(parts.size() == 3 && parts[rank].scalar_type() == type);
    for (int r = 0; r < 3; ++r)
      RANK_CHECK(torch::equal(parts[r], torch::tensor({r % 2 == 0, true, false}).to(type).view({1, 3})));
    auto copy = mine.clone();
    group.broadcast_(copy, 1);
    RANK_CHECK(torch::equal(copy, parts[1]));
  }
  // Results are ordinary tensors: writable, in autograd's graph too.
  auto gathered = group.all_gather(torch::ones({2}));
  gathered[0].mul_(torch::ones({2}, torch::requires_grad()));

  auto strided = torch::arange(6, torch::kFloat).view({2, 3}).t() + 10 * rank;
  group.broadcast_(strided, 2);
  RANK_CHECK(torch::equal(strided, torch::arange(6, torch::kFloat).view({2, 3}).t() + 20));

  auto uneven = group.all_gather(torch::full({rank, 2}, double(rank)), /*uneven=*/true);
  for (int r = 0; r < 3; ++r) RANK_CHECK(torch::equal(uneven[r], torch::full({r, 2}, double(r))));

  auto at_one = group.gather(torch::full({2}, rank), 1);
  RANK_CHECK(at_one.size() == (rank == 1 ? 3u : 0u));
  if (rank == 1) RANK_CHECK(torch::equal(at_one[2], torch::full({2}, 2)));

  std::vector<Tensor> parts;
  if (rank == 2)
    for (int r = 0; r < 3; ++r) parts.push_back(torch::full({2, 2}, r * 10.0));
  RANK_CHECK(torch::equal(group.scatter(parts, torch::empty({2, 2}), 2), torch::full({2, 2}, rank * 10.0)));

  auto reduced = group.reduce(torch::full({2}, rank + 1.0), ReduceOp::mean, 2);
  RANK_CHECK(reduced.defined() == (rank == 2));
  if (rank == 2) RANK_CHECK(torch::equal(reduced, torch::full({2}, 2.0)));

  std::vector<Tensor> even, odd;
  for (int r = 0; r < 3; ++r) {
    even.push_back(torch::full({2}, rank + r * 1.0));
    odd.push_back(torch::full({r + 1}, int64_t(rank + r)));
  }
  RANK_CHECK(torch::equal(group.reduce_scatter(even, ReduceOp::sum), torch::full({2}, 3 + 3.0 * rank)));
  RANK_CHECK(torch::equal(group.reduce_scatter(odd, ReduceOp::max), torch::full({rank + 1}, int64_t(2 + rank))));

  std::vector<Tensor> letters;
  for (int r = 0; r < 3; ++r) letters.push_back(torch::full({rank + r, 2}, rank * 10.0 + r));
  auto received = group.all_to_all(letters);
  for (int r = 0; r < 3; ++r) RANK_CHECK(torch::equal(received[r], torch::full({r + rank, 2}, r * 10.0 + rank)));

  for (int turn = 0; turn < 2; ++turn) {
    int next = (rank + 1) % 3, before = (rank + 2) % 3;
    auto token = torch::full({3, 2}, double(before)).t();
    if (rank == 0) group.send(torch::full({2, 3}, double(rank)), next, turn);
    group.recv_(token, before, turn);
    if (rank != 0) group.send(torch::full({2, 3}, double(rank)), next, turn);
    RANK_CHECK(token.sum().item<double>() == 6.0 * before);
  }
  RANK_CHECK(group.any(rank == 1) && !group.all(rank == 1) && group.all(true) && !group.any(false));
  group.barrier("end");
}

ALL_BACKENDS_TEST("nested values are moved between ranks", "[collectives]", 2) {
  auto group = ranks::group_from_env();
  Value::Map map;
  map["name"] = rank == 0 ? "zero" : "one";
  map["empty"] = Value();
  map["count"] = int64_t(-1) << 62;
  map["ratio"] = 0.1;
  map["on"] = true;
  map["list"] = Value::List{1, "two", Value::List{}, Value::Map{}};
  map["small"] = torch::full({rank + 2}, rank + 7.0);
  map["strided"] = torch::arange(6).view({2, 3}).t();
  map["large"] = torch::full({300, 100 + rank}, rank + 0.5).to(at::kBFloat16);
  map["complex"] = torch::complex(torch::ones({40000}), torch::zeros({40000}));
  map["scalar"] = torch::tensor(rank + 1);
  map["none"] = Tensor();
  map["text"] = std::string(5000, 'x');
  for (int src = 0; src < 2; ++src) {
    auto got = group.broadcast_value(map, src);
    RANK_CHECK(got.at("name").as_string() == (src == 0 ? "zero" : "one"));
    RANK_CHECK(got.at("empty").is_null() && got.at("count").as_int() == int64_t(-1) << 62);
    RANK_CHECK(got.at("ratio").as_double() == 0.1 && got.at("on").as_bool());
    RANK_CHECK(got.at("list").as_list()[1].as_string() == "two" && got.at("list").as_list()[3].is_map());
    RANK_CHECK(torch::equal(got.at("small").as<Tensor>(), torch::full({src + 2}, src + 7.0)));
    RANK_CHECK(torch::equal(got.at("strided").as<Tensor>(), torch::arange(6).view({2, 3}).t()));
    RANK_CHECK(torch::equal(got.at("large").as<Tensor>(), torch::full({300, 100 + src}, src + 0.5).to(at::kBFloat16)));
    RANK_CHECK(got.at("complex").as<Tensor>().numel() == 40000 && got.at("scalar").as<Tensor>().item<int>() == src + 1);
    RANK_CHECK(!got.at("none").as<Tensor>().defined() && got.at("text").as_string().size() == 5000);
  }
  RANK_CHECK(group.broadcast_value(rank, 1).as_int() == 1);
  auto all = group.all_gather_value(map);
  RANK_CHECK(all.size() == 2 && all[1].at("name").as_string() == "one");
  RANK_CHECK(torch::equal(all[1].at("large").as<Tensor>(), torch::full({300, 101}, 1.5).to(at::kBFloat16)));
  RANK_CHECK(group.all_gather_value(std::string(rank * 10, 'y'))[1].as_string() == "yyyyyyyyyy");
}

ALL_BACKENDS_TEST("LibTorch's own object works beside ours", "[collectives]", 2) {
  auto group = ranks::group_from_env({.timeout_seconds = 30, .mpi_overlap_mb = 0.01});
  std::vector<Tensor> tensors{torch::full({100000}, rank + 1.0f)}, small{torch::full({2}, rank + 1.0f)};
  auto large_work = group.c10d()->allreduce(tensors);  // over MPI: in the thread
  auto small_work = group.c10d()->allreduce(small);
  auto future = large_work->getFuture();
  auto ours = group.all_reduce(torch::ones({3}), ReduceOp::sum);
  small_work->wait();
  future->waitAndThrow();
  RANK_CHECK(tensors[0].eq(3).all().item<bool>() && small[0].eq(3).all().item<bool>() && ours.eq(2).all().item<bool>());
  RANK_CHECK(future->value().toTensorVector()[0].is_same(tensors[0]));
  // Sparse tensors with different numbers of entries, one of them twice.
  auto rows = rank == 0 ? torch::tensor({1, 1, 3}, at::kLong) : torch::tensor({3}, at::kLong);
  auto entries = torch::ones({rows.size(0), 2});
  std::vector<Tensor> sparse{torch::sparse_coo_tensor(rows.view({1, -1}), entries, {5, 2})};
  group.c10d()->allreduce(sparse)->wait();
  RANK_CHECK(sparse[0].is_sparse() && sparse[0]._nnz() == 2);
  RANK_CHECK(torch::equal(sparse[0].to_dense().select(1, 1), torch::tensor({0.f, 2.f, 0.f, 2.f, 0.f})));
  auto output = torch::empty({4}), input = torch::full({2}, double(rank)).to(at::kFloat);
  group.c10d()->getDefaultBackend()->_allgather_base(output, input)->wait();
  RANK_CHECK(torch::equal(output, torch::tensor({0.f, 0.f, 1.f, 1.f})));
  auto wrapped = fabric::ProcessGroup::wrap(group.c10d(), {.timeout_seconds = 30});
  RANK_CHECK(wrapped.size() == 2 && wrapped.all_reduce(torch::ones({1}), ReduceOp::sum).item<float>() == 2);
  wrapped.shutdown();
  RANK_CHECK(group.all_reduce(torch::ones({1}), ReduceOp::sum).item<float>() == 2);
}

namespace {

void run_over_mpi(const std::string& body, int count) {
  if (ranks::has_mpirun())
    ranks::run_and_require(body, ranks::mpirun(count));
  else
    WARN("skipped: there is no mpirun");
}

}  // namespace

// Over MPI the ranks of one machine compare notes even unchecked, as DDP's buckets and LibTorch's own object are.
RANKS_BODY("mpi unchecked") {
  auto group = ranks::group_from_env({.timeout_seconds = 30, .check = false});
  auto require_mismatch = [&](auto&& call, const std::string& first, const std::string& second) {
    std::string message;
    try {
      call();
    } catch (const fabric::MismatchError& error) {
      message = error.what();
    }
    if (message.find("rank 0: " + first) == std::string::npos || message.find("rank 1: " + second) == std::string::npos)
      ranks::fail(__FILE__, __LINE__, first + " against " + second + " gave: " + message);
  };
  require_mismatch([&] { group.all_reduce(torch::ones({rank + 1}), ReduceOp::sum); },
                   "all_reduce(sum) of 1 Float items", "all_reduce(sum) of 2 Float items");
  // As many bytes on both.
  require_mismatch(
      [&] { group.all_reduce(rank == 0 ? torch::ones({2}) : torch::ones({1}, at::kDouble), ReduceOp::sum); },
      "all_reduce(sum) of 2 Float items", "all_reduce(sum) of 1 Double items");
  require_mismatch([&] { group.all_reduce(torch::ones({2}), rank == 0 ? ReduceOp::sum : ReduceOp::max); },
                   "all_reduce(sum) of 2 Float items", "all_reduce(max) of 2 Float items");
  require_mismatch([&] { group.all_reduce(torch::ones({2}), rank == 0 ? ReduceOp::sum : ReduceOp::mean); },
                   "all_reduce(sum) of 2 Float items", "all_reduce(mean) of 2 Float items");
  // One on the board and one beyond it; one that brings nothing.
  require_mismatch([&] { group.all_reduce(torch::ones({rank == 0 ? 100000 : 2}), ReduceOp::sum); },
                   "all_reduce(sum) of 100000 Float items", "all_reduce(sum) of 2 Float items");
  require_mismatch(
      [&] {
        if (rank == 0)
          group.barrier();
        else
          group.all_gather(torch::ones({3}));
      },
      "barrier", "all_gather of 12 bytes");
  auto tensor = torch::ones({3});
  require_mismatch([&] { group.broadcast_(tensor, rank); }, "broadcast of 12 bytes, root 0",
                   "broadcast of 12 bytes, root 1");
  std::vector<Tensor> sparse{torch::ones({2, rank + 2}).to_sparse()};
  bool refused = false;
  try {
    group.c10d()->allreduce(sparse)->wait();
  } catch (const fabric::MismatchError&) {
    refused = true;
  }
  RANK_CHECK(refused);
  // Sparse tensors without any entry, and their mean.
  sparse = {torch::zeros({2, 3}).to_sparse()};
  group.c10d()->allreduce(sparse)->wait();
  RANK_CHECK(sparse[0]._nnz() == 0);
  sparse = {(torch::ones({2, 3}) * rank).to_sparse()};
  c10d::AllreduceOptions mean;
  mean.reduceOp = c10d::ReduceOp::AVG;
  group.c10d()->allreduce(sparse, mean)->wait();
  RANK_CHECK(torch::equal(sparse[0].to_dense(), torch::full({2, 3}, 0.5)));
  RANK_CHECK(group.all_reduce(torch::ones({1}), ReduceOp::sum).item<float>() == 2);
}

TEST_CASE("over MPI ranks that disagree are told so without the check, and go on", "[collectives][mpi]") {
  run_over_mpi("mpi unchecked", 2);
}

// Up to 64 KiB are reduced where the ranks meet, more by MPI.
RANKS_BODY("mpi around the board") {
  auto group = ranks::group_from_env({.timeout_seconds = 30, .check = false});
  int turn = 0;
  for (auto type : {at::kFloat, at::kDouble, at::kHalf}) {
    auto fit = (64 << 10) / static_cast<int64_t>(c10::elementSize(type));
    for (auto items : {fit, fit + 1, fit - 1, fit + 1, fit, int64_t(1), fit + 1, fit - 1, int64_t(0), fit}) {
      // Neighbours differ, so that an item in the wrong place shows.
      auto mine = (torch::arange(items, at::kLong) % 7 + rank + ++turn % 5).to(type);
      auto sum = ((torch::arange(items, at::kLong) % 7 + turn % 5) * world_size + 3).to(type);
      if (!torch::equal(group.all_reduce(mine, ReduceOp::sum), sum))
        ranks::fail(__FILE__, __LINE__, c10::str(items, " items of ", type));
    }
  }
}

TEST_CASE("all-reduces of all sizes around the board's follow one another", "[collectives][mpi]") {
  run_over_mpi("mpi around the board", 3);
}

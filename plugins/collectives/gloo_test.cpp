#include <torch/torch.h>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <fabric/plugins/collectives/process_group.h>

#include "tests/support/group_of_ranks.h"
#include "tests/support/ranks.h"

using fabric::ReduceOp;
using fabric::Value;

RANKS_TEST("gloo: ranks reduce, broadcast and gather tensors", "[collectives][gloo]", 2) {
  auto group = ranks::group_from_env();
  RANK_CHECK(group.backend() == "gloo");
  RANK_CHECK(group.rank() == rank && group.size() == 2);
  auto tensor = torch::full({3}, rank + 1.0);
  group.all_reduce_(tensor, ReduceOp::sum);
  RANK_CHECK(torch::equal(tensor, torch::full({3}, 3.0)));
  auto mean = group.all_reduce(torch::tensor({int64_t(rank * 5)}), ReduceOp::mean);
  RANK_CHECK(mean.item<int64_t>() == 2);
  auto parts = group.all_gather(torch::full({2, 2}, rank));
  RANK_CHECK(parts.size() == 2 && parts[1].sum().item<int>() == 4 && parts[0].sum().item<int>() == 0);
  auto ours = torch::full({2}, rank);
  group.broadcast_(ours, 1);
  RANK_CHECK(ours.sum().item<int>() == 2);
  Value::Map map;
  map["name"] = rank == 0 ? "zero" : "other";
  map["weights"] = torch::full({rank + 2}, rank + 7.0);
  auto value = group.broadcast_value(map, 0);
  RANK_CHECK(value.at("name").as_string() == "zero");
  RANK_CHECK(value.at("weights").as<at::Tensor>().numel() == 2);
  group.barrier("end");
  RANK_CHECK(group.c10d()->getSize() == 2);
  group.shutdown();
}

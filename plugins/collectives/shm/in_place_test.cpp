// Collectives on tensors in memory that the ranks see: the same results as elsewhere, also where some tensors lie there
// and others do not, in subgroups, and after the group.
#include <torch/torch.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/comm.hpp>

#include <fstream>
#include <sstream>

#include <fabric/base/error.h>
#include <fabric/fabric.h>
#include <fabric/plugins/collectives/process_group.h>
#include <fabric/strategies/ddp_comm_hooks.h>

#include "tests/support/group_of_ranks.h"

using at::Tensor;
using fabric::ProcessGroup;
using fabric::ReduceOp;

namespace {

ProcessGroup group_in_memory() { return ranks::group_from_env({.backend = "shm", .timeout_seconds = 60}); }

// The name of the mapping that a tensor lies in.
std::string place_of(const Tensor& tensor) {
  std::ifstream maps("/proc/self/maps");
  const auto address = reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr());
  for (std::string line; std::getline(maps, line);) {
    std::uintptr_t begin = 0, end = 0;
    char dash = 0;
    std::istringstream words(line);
    words >> std::hex >> begin >> dash >> end;
    if (begin <= address && address < end) return line;
  }
  return "";
}
bool is_shared(const Tensor& tensor) { return place_of(tensor).find("memfd:torchfabric") != std::string::npos; }

Tensor numbers(std::int64_t count, int rank, at::ScalarType type = at::kFloat) {
  auto generator = at::detail::createCPUGenerator(static_cast<std::uint64_t>(100 + rank));
  if (type == at::kBool) return torch::randint(0, 2, {count}, generator).to(type);
  if (at::isIntegralType(type, false)) return torch::randint(-50, 50, {count}, generator, type);
  const int most = type == at::kHalf ? 3 : 7;  // so that no sum overflows
  auto real = torch::randn({count}, generator) * torch::pow(10, torch::randint(1 - most, most, {count}, generator));
  return at::isComplexType(type) ? torch::complex(real, 1 - real).to(type) : real.to(type);
}

// `like` in the group's memory where `shared`, a private copy otherwise.
Tensor put(const ProcessGroup& group, const Tensor& like, bool shared) {
  return shared ? group.empty(like.sizes(), like.options()).copy_(like) : like.clone();
}

// Every collective through LibTorch's object, with the tensors of `private_rank` outside. The results of
// both have to be the same bit by bit.
void compare(const ProcessGroup& group, std::int64_t count, at::ScalarType type, int private_rank) {
  const int rank = group.rank(), size = group.size();
  auto c10d = group.c10d()->getBackend(c10::kCPU);
  auto all = numbers(count * size, rank, type);
  auto part = all.narrow(0, 0, count);
  std::vector<Tensor> results[2];
  for (bool shared : {false, true}) {
    auto& result = results[shared];
    auto place = [&](const Tensor& like) { return put(group, like, shared && rank != private_rank); };
    std::vector<Tensor> one{place(part)};
    c10d->allreduce(one)->wait();
    result.push_back(one[0].clone());
    one = {place(part)};
    c10d->allreduce(one, {.reduceOp = c10d::ReduceOp::AVG})->wait();
    result.push_back(one[0].clone());
    one = {place(part)};
    c10d->reduce(one, {.rootRank = 1})->wait();
    result.push_back(rank == 1 ? one[0].clone() : torch::zeros({1}));
    if (rank != 1) RANK_CHECK(torch::equal(one[0], part));
    one = {place(part)};
    c10d->broadcast(one, {.rootRank = 1})->wait();
    result.push_back(one[0].clone());
    auto input = place(part), output = place(all);
    c10d->_allgather_base(output, input)->wait();
    result.push_back(output.clone());
    RANK_CHECK(torch::equal(input, part));
    // In place, as sharded parameters are gathered.
    output = place(all);
    input = output.narrow(0, rank * count, count);
    c10d->_allgather_base(output, input)->wait();
    result.push_back(output.clone());
    input = place(all), output = place(part);
    c10d->_reduce_scatter_base(output, input)->wait();
    result.push_back(output.clone());
    RANK_CHECK(torch::equal(input, all));
    input = place(all);
    output = input.narrow(0, rank * count, count);
    c10d->_reduce_scatter_base(output, input)->wait();
    result.push_back(output.clone());
    input = place(all), output = place(all);
    std::vector<std::int64_t> none;
    c10d->alltoall_base(output, input, none, none)->wait();
    result.push_back(output.clone());
    // Rank r gets r + 1 shares of each.
    const auto share = count / (size * (size + 1) / 2);
    std::vector<std::int64_t> sent, received(static_cast<std::size_t>(size), share * (rank + 1));
    for (int other = 0; other < size; ++other) sent.push_back(share * (other + 1));
    input = place(all.narrow(0, 0, share * size * (size + 1) / 2));
    output = place(all.narrow(0, 0, share * (rank + 1) * size));
    c10d->alltoall_base(output, input, received, sent)->wait();
    result.push_back(output.clone());
  }
  for (std::size_t i = 0; i < results[0].size(); ++i)
    if (!torch::equal(results[0][i], results[1][i]))
      ranks::fail(__FILE__, __LINE__,
                  "result " + std::to_string(i) + " of " + std::to_string(count) + " " + c10::toString(type));
}

}  // namespace

RANKS_TEST("collectives on memory that the ranks see give what private memory gives, bit by bit", "[shm][arena]", 3) {
  at::set_num_threads(1);
  auto group = group_in_memory();
  RANK_CHECK(is_shared(group.empty({7})) && !is_shared(torch::empty({1 << 20})));
  for (std::int64_t count : {3, 1000, 6000, 50001, 300007})
    for (int private_rank : {-1, 0, 2}) compare(group, count, at::kFloat, private_rank);
  for (auto type : {at::kDouble, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kShort, at::kChar, at::kBool,
                    at::kComplexFloat})
    compare(group, 50001, type, -1);
}

RANKS_TEST("tensors of a group serve its subgroups, whose own memory is used again", "[shm][arena]", 3) {
  auto group = group_in_memory();
  auto shared = group.empty({100000});
  for (int round = 0; round < 40; ++round) {
    auto pair = group.subgroup({0, 1}), ends = group.subgroup({0, 2});
    for (auto* part : {&pair, &ends}) {
      if (!*part) continue;
      RANK_CHECK(part->backend() == "shm" && is_shared(part->empty({3})));
      shared.fill_(rank + 1);
      part->all_reduce_(shared, ReduceOp::sum);
      RANK_CHECK((shared == (part == &pair ? 3 : 4)).all().item<bool>());
      auto of_part = part->subgroup({0, 1});
      auto mine = of_part.empty({100000}).fill_(rank);
      of_part.all_reduce_(mine, ReduceOp::max);
      RANK_CHECK((mine == (part == &pair ? 1 : 2)).all().item<bool>());
    }
  }
  group.barrier();
  // A subgroup that one left is no place to wait in.
  auto both = group.subgroup({1, 2});
  if (rank == 2) both.shutdown();
  if (rank == 1) {
    std::string text;
    try {
      both.barrier();
    } catch (const fabric::CollectiveError& error) {
      text = error.what();
    }
    RANK_CHECK(text.find("rank 1 is gone: its process ended, or it left the group") != std::string::npos);
  }
  group.barrier();
}

namespace {

// Counts the buckets that lie where all ranks see them.
class LookingHook : public fabric::CommHook {
 public:
  explicit LookingHook(const ProcessGroup& group) : inner_(fabric::make_comm_hook({"allreduce"}, "", group)) {}
  Future run(c10d::GradBucket& bucket) override {
    ++(is_shared(bucket.getBuffer()) ? shared : elsewhere);
    return inner_->run(bucket);
  }
  int shared = 0, elsewhere = 0;

 private:
  std::shared_ptr<CommHook> inner_;
};

}  // namespace

RANKS_TEST("ddp's buckets lie in memory that the ranks see, before and after they are laid anew", "[shm][arena][ddp]",
           2) {
  at::set_num_threads(1);
  std::shared_ptr<LookingHook> hook;
  fabric::register_comm_hook("looking", [&](const ProcessGroup& group, const fabric::Tree&) {
    return hook = std::make_shared<LookingHook>(group);
  });
  std::vector<Tensor> weights;
  for (bool views : {false, true})
    for (const char* backend : {"gloo", "shm"}) {
      fabric::Fabric fabric(
          {.accelerator = "cpu",
           .strategy = fabric::Choice("ddp", {{"process_group", fabric::Tree::Map{{"backend", backend}}},
                                              {"gradient_as_bucket_view", views},
                                              {"bucket_cap_mb", 0.05},
                                              {"first_bucket_mb", 0.05},
                                              {"comm_hook", "looking"}}),
           .devices = 2});
      fabric.launch();
      fabric.seed_everything(3, true, false);
      torch::nn::Sequential net(torch::nn::Linear(100, 200), torch::nn::Tanh(), torch::nn::Linear(200, 100));
      auto [model, optimizer] = fabric.setup(net, [](auto parameters) { return torch::optim::SGD(parameters, 0.1); });
      for (int step = 0; step < 4; ++step) {
        optimizer.zero_grad();
        fabric.backward(model(torch::full({4, 100}, 0.1 * (step + rank))).square().mean());
        optimizer.step();
      }
      RANK_CHECK(std::string(backend) == "shm" ? hook->shared >= 8 && hook->elsewhere == 0 : hook->shared == 0);
      weights.push_back(model->parameters()[0].detach().clone());
      fabric.shutdown();
    }
  for (const auto& each : weights) RANK_CHECK(torch::equal(each, weights[0]));
}

RANKS_TEST("tensors outlive the group that gave them", "[shm][arena]", 2) {
  Tensor kept;
  for (int round = 0; round < 3; ++round) {
    auto group = group_in_memory();
    auto tensor = group.empty({100000}).fill_(rank + round);
    group.all_reduce_(tensor, ReduceOp::sum);
    group.shutdown();
    RANK_CHECK((tensor == 1 + 2 * round).all().item<bool>());
    if (kept.defined()) RANK_CHECK((kept == 2 * round - 1).all().item<bool>());
    kept = tensor;
  }
  kept.resize_({200000}).fill_(1);
  RANK_CHECK(kept.sum().item<double>() == 200000);
}

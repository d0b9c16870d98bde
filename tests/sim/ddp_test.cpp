// Ranks that train together, each with devices of its own: the process group's operations, and ddp over it.
#include <fabric/fabric.h>
#include <fabric/plugins/collectives/process_group.h>
#include <fabric/strategies/ddp.h>
#include <fabric/strategies/ddp_comm_hooks.h>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <map>

#include "tests/sim/sim_test_support.h"
#include "tests/support/group_of_ranks.h"
#include "tests/support/sim_device/parts.h"

using at::Tensor;

namespace {

// In a rank: what was found is its failure.
class CleanRank {
 public:
  explicit CleanRank(int rank) : device(sim::sim_device(rank % sim::kDevices)) {
    at::set_num_threads(1);
    sim::register_parts();
  }
  void check() const {
    for (const auto& finding : sim::take_findings()) throw std::runtime_error(finding);
  }
  c10::Device device;
};

fabric::ProcessGroup make_group(c10::Device device) {
  return fabric::ProcessGroup::create({.timeout_seconds = 60}, ranks::rank_info_from_env(), device);
}

struct RankNetImpl : torch::nn::Module {
  RankNetImpl() {
    first = register_module("first", torch::nn::Linear(6, 32));
    norm = register_module("norm", torch::nn::BatchNorm1d(32));
    second = register_module("second", torch::nn::Linear(32, 3));
  }
  Tensor forward(const Tensor& x) { return second(torch::tanh(norm(first(x)))); }
  torch::nn::Linear first{nullptr}, second{nullptr};
  torch::nn::BatchNorm1d norm{nullptr};
};
TORCH_MODULE(RankNet);

struct Trained {
  Tensor parameters, buffers;
  float first = 0, last = 0;
  std::uint64_t waits = 0;  // of the host, in the steps after the buckets were laid out anew
};

Trained train(const std::string& accelerator, fabric::Tree::Map settings, int rank) {
  bool on_cpu = accelerator == "cpu";
  settings["process_group"] = fabric::Tree::Map{{"backend", on_cpu ? "shm" : "sim"}, {"timeout_seconds", 60.0}};
  fabric::Fabric fabric({.accelerator = accelerator, .strategy = fabric::Choice("ddp", settings), .devices = 2});
  fabric.launch();
  fabric.seed_everything(5);
  RankNet net;
  auto [model, optimizer] = fabric.setup(
      net, [](auto parameters) { return torch::optim::SGD(parameters, torch::optim::SGDOptions(0.1).momentum(0.9)); });
  if (!on_cpu) sim::name_tensors(*net);
  torch::manual_seed(10 + rank);
  auto x = fabric.to_device(torch::randn({12, 6})), y = fabric.to_device(torch::randint(3, {12}));
  Trained trained;
  for (int step = 0; step < 8; ++step) {
    optimizer.zero_grad();
    bool accumulates = step % 4 == 1;
    auto apart = fabric.no_backward_sync(model, accumulates);
    sim::Count count;
    auto loss = torch::nll_loss(torch::log_softmax(model(x), 1), y);
    fabric.backward(loss);
    apart.close();
    if (!accumulates) optimizer.step();
    if (step > 2) trained.waits += count.host_waits();
    trained.last = fabric.all_reduce(loss.detach()).template item<float>();
    if (step == 0) trained.first = trained.last;
  }
  trained.parameters = torch::nn::utils::parameters_to_vector(net->parameters()).detach().cpu();
  trained.buffers = at::cat({net->norm->running_mean, net->norm->running_var}).cpu();
  RANK_CHECK(fabric.device().is_cpu() == on_cpu);
  fabric.barrier("end");
  fabric.shutdown();
  return trained;
}

void compare(const fabric::Tree::Map& settings, int rank, bool bitwise) {
  auto ours = train("sim", settings, rank), cpu = train("cpu", settings, rank);
  RANK_CHECK(ours.last < ours.first);
  // LibTorch's Reducer reads which parameters were used.
  if (!settings.contains("find_unused_parameters") && !settings.contains("static_graph")) RANK_CHECK(ours.waits == 0);
  RANK_CHECK(bitwise ? at::equal(ours.parameters, cpu.parameters)
                     : at::allclose(ours.parameters, cpu.parameters, 1e-4, 1e-5));
  RANK_CHECK(bitwise ? at::equal(ours.buffers, cpu.buffers) : at::allclose(ours.buffers, cpu.buffers, 1e-4, 1e-5));
}

}  // namespace

RANKS_TEST("the group's operations give what they should, on a stream of their own", "[sim][collectives]", 2) {
  CleanRank self(rank);
  auto group = make_group(self.device);
  RANK_CHECK(group.backend() == "sim");
  auto mine = at::full({5}, rank + 1.0f, sim::on(self.device.index()));
  RANK_CHECK(group.all_reduce(mine, fabric::ReduceOp::sum).sum().item<float>() == 15);
  RANK_CHECK(group.all_reduce(mine, fabric::ReduceOp::mean)[0].item<float>() == 1.5f);
  RANK_CHECK(group.all_reduce(mine, fabric::ReduceOp::max).device() == self.device);
  auto parts = group.all_gather(mine.slice(0, 0, 2 + rank), /*uneven=*/true);
  RANK_CHECK(parts.size() == 2 && parts[1].numel() == 3 && parts[1].sum().item<float>() == 6);
  auto sent = mine.clone();
  group.broadcast_(sent, 1);
  RANK_CHECK(sent.sum().item<float>() == 10);
  auto share = group.reduce_scatter({mine, mine * 2}, fabric::ReduceOp::sum);
  RANK_CHECK(share[0].item<float>() == 3 * (rank + 1));
  auto swapped = group.all_to_all({mine, mine * 10});
  RANK_CHECK(swapped[1 - rank][0].item<float>() == (rank == 0 ? 2 : 10));
  auto gathered = group.gather(mine, 0);
  RANK_CHECK(gathered.size() == (rank == 0 ? 2u : 0u));
  // Values and tensors of the CPU take the group beside it.
  RANK_CHECK(group.all_reduce(torch::ones({2}), fabric::ReduceOp::sum).sum().item<float>() == 4);
  RANK_CHECK(group.all_gather_value(fabric::Value(rank))[1].as_int() == 1);
  group.barrier();
  self.check();
}

RANKS_TEST("what one rank sends another is ordered on the device", "[sim][collectives]", 2) {
  CleanRank self(rank);
  auto group = make_group(self.device);
  auto tensor = at::zeros({5}, sim::on(self.device.index()));
  for (int round = 0; round < 3; ++round) {
    if (rank == 0) {
      group.send(tensor.add_(1), 1);
    } else {
      group.recv_(tensor, 0);
      RANK_CHECK((tensor + 1).sum().item<float>() == 5.0f * static_cast<float>(2 + round));
    }
  }
  group.barrier();
  self.check();
}

RANKS_TEST("an operation does not hold up the host, and its wait is needed", "[sim][collectives]", 2) {
  CleanRank self(rank);
  auto group = make_group(self.device);
  auto c10d = group.c10d();
  // Rank 0 calls it long before rank 1, which waits for a word of rank 0's that comes after the call.
  std::vector<Tensor> tensors{at::full({1000}, rank + 1.0f, sim::on(self.device.index()))};
  if (rank == 1) group.broadcast_value(fabric::Value(), 0);
  auto work = c10d->allreduce(tensors);
  if (rank == 0) group.broadcast_value(fabric::Value("go"), 0);
  work->wait();
  tensors[0].add_(1);
  RANK_CHECK(tensors[0].sum().item<float>() == 4000);
  self.check();
  // Without it the numbers are right, too, and the error is found.
  auto forgotten = c10d->allreduce(tensors);
  tensors[0].add_(1);
  RANK_CHECK(tensors[0].sum().item<float>() == 9000);
  auto findings = sim::take_findings();
  RANK_CHECK(!findings.empty());
  RANK_CHECK(findings[0].find("which all_reduce writes") != std::string::npos);
  forgotten->wait();
  group.barrier();
}

TEST_CASE("a rank that stays away is a timeout, in the operation that uses the result", "[sim][collectives]") {
  auto outcomes = ranks::run("sim timeout", {.world_size = 2, .timeout_seconds = 60});
  for (const auto& outcome : outcomes) {
    INFO(outcome.output);
    CHECK(outcome.exit_code == 0);
  }
}
RANKS_BODY("sim timeout") {
  CleanRank self(rank);
  auto group = make_group(self.device);
  if (rank == 1) {
    group.broadcast_value(fabric::Value(), 0);
    return;
  }
  group.c10d()->getBackend(c10::DeviceType::PrivateUse1)->setTimeout(std::chrono::seconds(1));
  std::vector<Tensor> tensors{at::ones({10}, sim::on(self.device.index()))};
  auto work = group.c10d()->allreduce(tensors);
  work->wait();
  bool failed = false;
  try {
    tensors[0].add_(1);
  } catch (const std::exception&) {
    failed = true;
  }
  RANK_CHECK(failed);
  RANK_CHECK(work->exception() != nullptr);
  group.broadcast_value(fabric::Value("done"), 0);
}

RANKS_TEST("two groups have streams and communicators of their own", "[sim][collectives]", 2) {
  CleanRank self(rank);
  auto group = make_group(self.device);
  auto other = group.subgroup({0, 1}, "other");
  auto first = at::ones({1000}, sim::on(self.device.index())), second = first * 2;
  std::vector<Tensor> one{first}, two{second};
  // Begun in another order on each rank: neither waits for the other.
  c10::intrusive_ptr<c10d::Work> first_work, second_work;
  if (rank == 0) first_work = group.c10d()->allreduce(one);
  second_work = other.c10d()->allreduce(two);
  if (rank == 1) first_work = group.c10d()->allreduce(one);
  second_work->wait();
  RANK_CHECK(second.sum().item<float>() == 4000);
  first_work->wait();
  RANK_CHECK(first.sum().item<float>() == 2000);
  group.barrier();
  self.check();
}

RANKS_TEST("ddp on the device gives the CPU's numbers bit by bit, and its waits are complete", "[sim][ddp]", 2) {
  CleanRank self(rank);
  compare({}, rank, true);
  compare({{"gradient_as_bucket_view", false}, {"bucket_cap_mb", 0.0}, {"first_bucket_mb", 0.0}}, rank, true);
  compare({{"find_unused_parameters", true}}, rank, true);
  compare({{"static_graph", true}}, rank, true);
  self.check();
}

RANKS_TEST("ddp's hooks order what they send", "[sim][ddp][hooks]", 2) {
  CleanRank self(rank);
  for (const char* hook : {"allreduce", "fp16_compress", "bf16_compress"})
    compare({{"comm_hook", hook}}, rank, std::string(hook) == "allreduce");
  fabric::Tree::Map powersgd{{"name", "powersgd"}, {"start_powersgd_iter", 2}};
  compare({{"comm_hook", powersgd}}, rank, false);
  compare({{"comm_hook", "allreduce"}, {"comm_hook_wrapper", "bf16"}}, rank, false);
  self.check();
}

RANKS_TEST("model averaging on the device", "[sim][ddp]", 2) {
  CleanRank self(rank);
  compare({{"model_averaging_period", 2}, {"model_averaging_warmup", 2}}, rank, true);
  self.check();
}

namespace {

void join_uneven_ranks(int rank, const fabric::Tree::Map& settings) {
  fabric::Fabric fabric({.accelerator = "sim", .strategy = fabric::Choice("ddp", settings), .devices = 2});
  fabric.launch();
  fabric.seed_everything(5);
  auto [model, optimizer] = fabric.setup(torch::nn::Linear(4, 2), [](auto parameters) {
    return torch::optim::SGD(parameters, torch::optim::SGDOptions(0.1));
  });
  auto x = fabric.to_device(torch::ones({3, 4}));
  auto uneven = [&, &model = model, &optimizer = optimizer] {
    for (int step = 0; step < 2 + 3 * rank; ++step) {
      optimizer.zero_grad();
      fabric.backward(model(x).square().mean());
      optimizer.step();
    }
  };
  fabric.join(uneven, model);
  auto mine = model->weight.detach().sum();
  RANK_CHECK(fabric.all_reduce(mine, fabric::ReduceOp::max).template item<float>() == mine.template item<float>());
  fabric.barrier("end");
  fabric.shutdown();
}

}  // namespace

RANKS_TEST("join on the device orders what the ranks that ended do beside the others", "[sim][ddp]", 2) {
  CleanRank self(rank);
  join_uneven_ranks(rank, {});
  join_uneven_ranks(rank, {{"find_unused_parameters", true}});
  join_uneven_ranks(rank, {{"comm_hook", "bf16_compress"}, {"bucket_cap_mb", 0.0}, {"first_bucket_mb", 0.0}});
  self.check();
}

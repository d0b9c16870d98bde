// A backend that a program brings along, through public headers alone.
#include <torch/torch.h>

#include <fabric/fabric.h>
#include <fabric/plugins/collectives/backend.h>

#include "tests/support/group_of_ranks.h"

using at::Tensor;
using fabric::ReduceOp;

namespace {

using Tensors = std::vector<Tensor>;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;

// Every message is a value in the job's store. Reduces float and int64, by sum and maximum.
class StoreBackend : public c10d::Backend {
 public:
  StoreBackend(c10::intrusive_ptr<c10d::Store> store, int rank, int size)
      : Backend(rank, size), store_(std::move(store)) {}
  const std::string getBackendName() const override { return "pigeon"; }

  WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override {
    auto& tensor = tensors.at(0);
    auto all = exchange(tensor);
    TORCH_CHECK(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kLong, "pigeons carry no ",
                tensor.scalar_type());
    auto sum = all[0];
    for (std::size_t rank = 1; rank < all.size(); ++rank) {
      if (options.reduceOp == c10d::ReduceOp::SUM)
        sum = sum + all[rank];
      else if (options.reduceOp == c10d::ReduceOp::MAX)
        sum = torch::max(sum, all[rank]);
      else
        TORCH_CHECK(false, "pigeons only add and compare");
    }
    tensor.copy_(sum);
    return fabric::finished_work(tensors);
  }
  WorkPtr broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override {
    tensors.at(0).copy_(exchange(tensors[0])[static_cast<std::size_t>(options.rootRank)]);
    return fabric::finished_work(tensors);
  }
  WorkPtr _allgather_base(Tensor& output, Tensor& input, const c10d::AllgatherOptions&) override {
    output.copy_(torch::cat(exchange(input.view({-1}))).view(output.sizes()));
    return fabric::finished_work({output});
  }
  WorkPtr barrier(const c10d::BarrierOptions&) override {
    exchange(torch::zeros({1}));
    return fabric::finished_work({});
  }

 private:
  Tensors exchange(const Tensor& tensor) {
    auto turn = std::to_string(turn_++) + "/";
    auto mine = tensor.detach().contiguous();
    const auto* bytes = static_cast<const std::uint8_t*>(mine.const_data_ptr());
    // A store holds no empty values.
    std::vector<std::uint8_t> message(bytes, bytes + mine.nbytes());
    message.push_back(0);
    store_->set(turn + std::to_string(getRank()), message);
    Tensors all;
    for (int rank = 0; rank < getSize(); ++rank) {
      auto arrived = store_->get(turn + std::to_string(rank));
      TORCH_CHECK(arrived.size() == mine.nbytes() + 1, "rank ", rank, " sent ", arrived.size() - 1, " bytes");
      all.push_back(torch::empty_like(mine));
      std::memcpy(all.back().mutable_data_ptr(), arrived.data(), mine.nbytes());
    }
    return all;
  }
  c10::intrusive_ptr<c10d::Store> store_;
  int turn_ = 0;
};

int handed_out = 0;

class Pigeons : public fabric::CollectiveBackend {
 public:
  using CollectiveBackend::CollectiveBackend;
  std::string describe() const override { return "pigeons between " + std::to_string(c10d()->getSize()) + " lofts"; }
  bool reduces(at::ScalarType type, ReduceOp op) const override {
    return (type == at::kFloat || type == at::kLong) && op != ReduceOp::min && op != ReduceOp::product;
  }
  Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) override {
    ++handed_out;
    return CollectiveBackend::empty(sizes, options);
  }
};

void register_pigeons() {
  fabric::register_backend("Pigeon",
                           {.make =
                                [](const fabric::BackendRequest& request) {
                                  return std::make_shared<Pigeons>(
                                      c10::make_intrusive<StoreBackend>(request.store, request.rank, request.size));
                                }},
                           false, "messages in the job's store");
}

struct NetImpl : torch::nn::Module {
  NetImpl() {
    first = register_module("first", torch::nn::Linear(8, 16));
    second = register_module("second", torch::nn::Linear(16, 3));
  }
  Tensor forward(const Tensor& x) { return second(torch::relu(first(x))); }
  torch::nn::Linear first{nullptr}, second{nullptr};
};
TORCH_MODULE(Net);

// The losses of this rank, and the parameters at the end.
std::pair<std::vector<double>, Tensor> train(const std::string& backend, int rank) {
  fabric::Tree::Map group{{"backend", backend}, {"timeout_seconds", 60.0}};
  fabric::Fabric fabric({.accelerator = "cpu", .strategy = fabric::Choice("ddp", {{"process_group", group}})});
  fabric.launch();
  fabric.seed_everything(5);
  Net net;
  torch::optim::SGD sgd(net->parameters(), 0.1);
  auto [model, optimizer] = fabric.setup(net, sgd);
  torch::manual_seed(rank);
  std::vector<double> losses;
  auto x = torch::randn({12, 8}), y = torch::randint(3, {12});
  for (int step = 0; step < 20; ++step) {
    optimizer.zero_grad();
    auto loss = torch::cross_entropy_loss(model(x), y);
    fabric.backward(loss);
    optimizer.step();
    losses.push_back(fabric.all_reduce(loss.detach()).item<double>());
  }
  RANK_CHECK(fabric.strategy()->process_group().backend() == backend);
  return {losses, torch::nn::utils::parameters_to_vector(net->parameters()).detach().clone()};
}

}  // namespace

RANKS_TEST("a program's own backend trains with ddp as gloo does", "[collectives][backend]", 2) {
  register_pigeons();
  auto [losses, parameters] = train("pigeon", rank);
  auto [expected, others] = train("gloo", rank);
  RANK_CHECK(losses.back() < 0.9 * losses.front());
  for (std::size_t i = 0; i < losses.size(); ++i) RANK_CHECK(std::abs(losses[i] - expected[i]) < 1e-5);
  RANK_CHECK(torch::allclose(parameters, others, 1e-5, 1e-6));
}

RANKS_TEST("a group converts what a program's own backend does not reduce", "[collectives][backend]", 2) {
  register_pigeons();
  auto group = ranks::group_from_env({.backend = "pigeon", .timeout_seconds = 30});
  RANK_CHECK(group.describe() == "pigeons between 2 lofts");
  for (auto type : {at::kHalf, at::kBFloat16, at::kInt, at::kByte, at::kShort, at::kFloat, at::kLong}) {
    auto sum = group.all_reduce(torch::full({3}, 1 + rank, type), ReduceOp::sum);
    RANK_CHECK(sum.scalar_type() == type && sum.to(at::kDouble).sum().item<double>() == 9);
  }
  RANK_CHECK(group.all_reduce(torch::full({2}, 1.0f + rank), ReduceOp::mean)[0].item<float>() == 1.5f);
  RANK_CHECK(group.all(true) && !group.all(rank == 0) && group.any(rank == 0) && !group.any(false));
  try {
    group.all_reduce(torch::ones({2}), ReduceOp::min);
    RANK_CHECK(false);
  } catch (const fabric::MisuseError& error) {
    RANK_CHECK(std::string(error.what()).find("pigeons") != std::string::npos);
  }
  // The check, by what the base class does.
  try {
    group.all_reduce(torch::ones({2 + rank}), ReduceOp::sum);
    RANK_CHECK(false);
  } catch (const fabric::MismatchError& error) {
    RANK_CHECK(std::string(error.what()).find("rank 1: all_reduce(sum) of Float [3]") != std::string::npos);
  }
  // Values, parts of a group, memory.
  RANK_CHECK(group.all_gather_value(std::string("r") + std::to_string(rank))[1].as_string() == "r1");
  auto alone = group.subgroup({0});
  if (alone) RANK_CHECK(alone.backend() == "pigeon" && alone.size() == 1);
  auto memory = group.empty({2, 3}, at::kFloat);
  RANK_CHECK(handed_out == 1 && memory.numel() == 6);
  group.barrier();
}

TEST_CASE("kinds of backends have names of their own", "[collectives][backend]") {
  register_pigeons();
  auto names = fabric::available_backends();
  CHECK(std::count(names.begin(), names.end(), "pigeon") == 1);
  CHECK_THROWS_WITH(register_pigeons(), Catch::Contains("registered already"));
  CHECK_THROWS_AS(fabric::register_backend("auto", {}), fabric::ConfigError);
  CHECK_THROWS_AS(fabric::register_backend("empty", {}), fabric::MisuseError);
  fabric::register_backend(
      "nothing", {.make = [](const fabric::BackendRequest&) { return std::shared_ptr<fabric::CollectiveBackend>(); }});
  CHECK_THROWS_WITH(fabric::ProcessGroup::create({.backend = "nothing"}, {}, c10::kCPU),
                    Catch::Contains("returned nothing"));
  CHECK_THROWS_WITH(fabric::ProcessGroup::create({.backend = "pigeons"}, {}, c10::kCPU),
                    Catch::Contains("did you mean 'pigeon'"));
  fabric::RankInfo two;
  two.world_size = 2;
  CHECK_THROWS_WITH(fabric::ProcessGroup::create({.backend = "single"}, two, c10::kCPU), Catch::Contains("one rank"));
}

TEST_CASE("the settings 'auto' take the kind that suits the ranks best", "[collectives][backend]") {
  static bool suits = false;  // the kind outlives this test
  fabric::register_backend("suited", {.make =
                                          [](const fabric::BackendRequest& request) {
                                            return std::make_shared<Pigeons>(c10::make_intrusive<StoreBackend>(
                                                request.store, request.rank, request.size));
                                          },
                                      .suits = [](const fabric::RankInfo&, c10::Device) { return suits ? 100 : 0; }});
  CHECK(fabric::ProcessGroup::create({}, {}, c10::kCPU).backend() == "single");
  suits = true;
  CHECK(fabric::ProcessGroup::create({}, {}, c10::kCPU).backend() == "suited");
  suits = false;
}

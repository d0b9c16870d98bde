// The facade over two ranks, with each process group that needs no GPU.
#include <fabric/fabric.h>

#include <torch/torch.h>

#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/support/group_of_ranks.h"

using fabric::Fabric;
using fabric::Value;

namespace {

Fabric::Config two_ranks() { return {.accelerator = "cpu", .strategy = ranks::ddp_from_env(), .devices = 2}; }

template <class Error, class Action>
std::string error_of(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

bool holds(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// Has a state, unless it is told that it has none.
struct Fragile : fabric::Stateful {
  explicit Fragile(bool broken) : broken(broken) {}
  Value state_dict() const override {
    if (broken) throw std::runtime_error("no state here");
    return 1;
  }
  void load_state_dict(const Value&) override {
    if (broken) throw std::runtime_error("not restored");
  }
  bool broken;
};

}  // namespace

BOTH_BACKENDS_TEST("two ranks: collectives over nested values", "[fabric][ranks]", 2) {
  Fabric fabric(two_ranks());
  fabric.launch();
  RANK_CHECK(fabric.world_size() == 2 && fabric.global_rank() == rank);
  RANK_CHECK(fabric.all_reduce(Value(rank), fabric::ReduceOp::sum).as_int() == 1);
  RANK_CHECK(fabric.all_reduce(Value(rank)).as_double() == 0.5);
  auto kept = torch::full({2}, rank + 1.0);
  auto mean = fabric.all_reduce(kept);
  RANK_CHECK(mean[0].item<double>() == 1.5 && kept[0].item<double>() == rank + 1.0);
  Value nested = Value::Map{{"list", Value::List{rank, "r" + std::to_string(rank)}}};
  auto gathered = fabric.all_gather(nested);
  RANK_CHECK(gathered.at("list").as_list()[1].as_list()[1].as_string() == "r1");
  auto uneven = fabric.all_gather_list(torch::ones({rank + 1, 2}));
  RANK_CHECK(uneven[0].size(0) == 1 && uneven[1].size(0) == 2);
  RANK_CHECK(fabric.broadcast(Value::Map{{"x", torch::full({3}, rank)}}, 1).at("x").as<at::Tensor>()[0].item<int>() ==
             1);
  // Rank 1's turn begins when rank 0's has ended.
  auto mark = std::filesystem::temp_directory_path() /
              ("fabric_first_" + fabric.broadcast(Value(std::to_string(getpid()))).as_string());
  bool in_turn = false;
  fabric.rank_zero_first([&] {
    in_turn = std::filesystem::exists(mark) == (rank == 1);
    if (rank == 1) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    std::ofstream(mark) << "done";
  });
  RANK_CHECK(in_turn);
  if (rank == 1) std::filesystem::remove(mark);
  bool refused = false;
  try {
    fabric.rank_zero_first([&] {
      if (rank == 0) throw std::runtime_error("no disk");
    });
  } catch (const std::exception& error) {
    refused = std::string(error.what()).find("no disk") != std::string::npos;
  }
  RANK_CHECK(refused);
  bool mismatch = false;
  try {
    fabric.all_reduce(torch::ones({rank + 1}));
  } catch (const fabric::MismatchError&) {
    mismatch = true;
  }
  RANK_CHECK(mismatch);
  fabric.barrier();
}

BOTH_BACKENDS_TEST("maps meet by key, and values of different structure are refused", "[fabric][ranks]", 2) {
  Fabric fabric(two_ranks());
  fabric.launch();
  Value mine = rank == 0 ? Value::Map{{"loss", 1.0}, {"acc", 10.0}} : Value::Map{{"acc", 20.0}, {"loss", 3.0}};
  auto mean = fabric.all_reduce(mine);
  RANK_CHECK(mean.at("loss").as_double() == 2 && mean.at("acc").as_double() == 15);
  RANK_CHECK(mean.as_map().begin()->first == (rank == 0 ? "loss" : "acc"));
  Value longer = rank == 0 ? Value::List{1.0} : Value::List{1.0, 2.0};
  auto text = error_of<fabric::MismatchError>([&] { fabric.all_reduce(longer); });
  RANK_CHECK(holds(text, "\"[number]\"") && holds(text, "\"[number, number]\""));
  Value renamed = Value::Map{{rank == 0 ? "a" : "b", torch::ones({2})}};
  text = error_of<fabric::MismatchError>([&] { fabric.all_gather(renamed); });
  RANK_CHECK(holds(text, "{a: tensor}") && holds(text, "{b: tensor}"));
  // A number travels, a text does not, and a map is several operations.
  Value mixed = rank == 0 ? Value(1.0) : Value("text");
  text = error_of<fabric::MismatchError>([&] { fabric.all_reduce(mixed); });
  RANK_CHECK(holds(text, "other"));
  mixed = rank == 0 ? Value(1.0) : Value(Value::Map{{"a", 1.0}});
  text = error_of<fabric::MismatchError>([&] { fabric.all_reduce(mixed); });
  RANK_CHECK(holds(text, "{a: number}"));
  RANK_CHECK(fabric.all_reduce(Value(1.0), fabric::ReduceOp::sum).as_double() == 2);
}

namespace {

struct Recalled {
  at::Tensor hidden;
  int calls = 0;
  FABRIC_TENSORS(Recalled, hidden)
};
struct RecallImpl : torch::nn::Module {
  RecallImpl() {
    cell = register_module("cell", torch::nn::Linear(2, 2));
    spare = register_module("spare", torch::nn::Linear(2, 2));
  }
  void forward(const at::Tensor& x, Recalled& memory) {
    ++memory.calls;
    memory.hidden = cell(x);
  }
  torch::nn::Linear cell{nullptr}, spare{nullptr};
};
TORCH_MODULE(Recall);

}  // namespace

RANKS_TEST("ddp trains through what a model leaves in its arguments", "[fabric][ranks]", 2) {
  Fabric fabric({.accelerator = "cpu", .strategy = "ddp_find_unused_parameters_true", .devices = 2});
  fabric.launch();
  auto model = fabric.setup(Recall());
  for (int step = 1; step <= 2; ++step) {
    Recalled memory;
    model(torch::full({1, 2}, rank + 1.0), memory);
    RANK_CHECK(memory.calls == 1);
    model->zero_grad();
    fabric.backward(memory.hidden.sum());
    RANK_CHECK(model->cell->weight.grad()[0][0].item<double>() == 1.5);
  }
}

BOTH_BACKENDS_TEST("a group that leaves a rank out is no group of all ranks for it", "[fabric][ranks]", 2) {
  Fabric fabric(two_ranks());
  fabric.launch();
  auto first = fabric.strategy()->process_group().subgroup({0}, "first");
  RANK_CHECK(bool(first) == (rank == 0));
  if (rank == 0)
    RANK_CHECK(fabric.all_reduce(torch::ones({1}), fabric::ReduceOp::sum, first).item<double>() == 1);
  else
    RANK_CHECK(holds(error_of<fabric::MisuseError>([&] { fabric.all_reduce(torch::ones({1}), {}, first); }), "first"));
  fabric.barrier();
}

RANKS_TEST("loggers write on rank 0 only, also when they are called directly", "[fabric][ranks]", 2) {
  namespace fs = std::filesystem;
  auto root = fs::temp_directory_path() / ("fabric_loggers_" + std::string(std::getenv("MASTER_PORT")));
  auto config = two_ranks();
  config.loggers = {fabric::Choice("csv", {{"root_dir", root.string()}, {"run_name", "run"}})};
  {
    Fabric fabric(config);
    fabric.launch();
    fabric.logger().log_hyperparams(fabric::Tree::Map{{"lr", 0.1}});
    fabric.logger().log_metrics({{"direct", 1.0}}, 0);
    fabric.log("loss", 2.0, 1);
    fabric.barrier();
  }
  if (rank == 0) {
    int versions = 0;
    for ([[maybe_unused]] const auto& entry : fs::directory_iterator(root / "run")) ++versions;
    RANK_CHECK(versions == 1);
    RANK_CHECK(fs::exists(root / "run" / "version_0" / "hparams.yaml"));
    fs::remove_all(root);
  }
}

BOTH_BACKENDS_TEST("several Fabric objects one after another, in ranks that run already", "[fabric][ranks]", 2) {
  for (int round = 0; round < 3; ++round) {
    Fabric fabric(two_ranks());
    fabric.launch();
    RANK_CHECK(fabric.all_reduce(Value(round + rank), fabric::ReduceOp::sum).as_int() == 2 * round + 1);
  }
}

BOTH_BACKENDS_TEST("a failed save is an error on every rank", "[fabric][ranks]", 2) {
  Fabric fabric(two_ranks());
  fabric.launch();
  bool failed = false;
  try {
    fabric.save("/proc/nowhere/x.safetensors", {{"a", 1}});
  } catch (const fabric::CheckpointError&) {
    failed = true;
  }
  RANK_CHECK(failed);
}

BOTH_BACKENDS_TEST("two ranks: tensors of unequal shapes, in place and with gradients", "[fabric][ranks]", 2) {
  Fabric fabric(two_ranks());
  fabric.launch();
  auto uneven = torch::full({rank + 1}, double(rank));
  auto parts = fabric.all_gather(Value(Value::List{uneven})).as_list()[0];
  RANK_CHECK(parts.as_list()[1].as<at::Tensor>().size(0) == 2 && parts.as_list()[0].as<at::Tensor>().size(0) == 1);
  auto text = error_of<fabric::MismatchError>([&] { fabric.all_gather(uneven); });
  RANK_CHECK(holds(text, "rank 0 [1]") && holds(text, "rank 1 [2]") && holds(text, "all_gather_list"));

  auto tensor = torch::full({3}, rank + 1.0);
  fabric.all_reduce_(tensor, fabric::ReduceOp::sum);
  RANK_CHECK(tensor[2].item<double>() == 3);
  RANK_CHECK(fabric.reduce(Value(rank + 1), fabric::ReduceOp::max).as_int() == 2);
  RANK_CHECK(fabric.all_reduce(torch::full({1}, rank + 2, torch::kLong)).item<int64_t>() == 2);  // 2.5, truncated

  auto x = torch::full({2}, rank + 1.0, torch::requires_grad());
  auto all = fabric.all_gather(x, {}, /*sync_grads=*/true);
  (all * torch::tensor({{1.0}, {10.0}}) * (rank + 1)).sum().backward();
  // Both ranks' losses reach this rank's input: (1 + 2) times its own factor.
  RANK_CHECK(x.grad()[0].item<double>() == (rank == 0 ? 3 : 30));
}

BOTH_BACKENDS_TEST("two ranks: a save or load that fails on one rank is an error on both", "[fabric][ranks]", 2) {
  Fabric fabric(two_ranks());
  fabric.launch();
  auto name = "fabric_ranks_test_" + std::to_string(fabric.broadcast(Value(getpid())).as_int()) + ".safetensors";
  auto path = std::filesystem::temp_directory_path() / name;
  Fragile whole(false), broken_elsewhere(rank == 1);
  fabric.save(path, {{"object", whole}, {"step", 4}});
  auto saving = error_of<std::exception>([&] { fabric.save(path, {{"object", broken_elsewhere}}); });
  RANK_CHECK(holds(saving, "no state here") && (rank == 1 || holds(saving, "rank 1")));
  fabric::State state = {{"object", broken_elsewhere}};
  auto loading = error_of<std::exception>([&] { fabric.load(path, state); });
  RANK_CHECK(holds(loading, "not restored") && (rank == 1 || holds(loading, "rank 1")));
  RANK_CHECK(fabric.load(path).at("step").as_int() == 4);
  fabric.barrier();
  if (rank == 0) std::filesystem::remove(path);
}

BOTH_BACKENDS_TEST("two ranks: an error of one is an error of the same class on both, and changes nothing",
                   "[fabric][ranks]", 2) {
  Fabric fabric(two_ranks());
  fabric.launch();
  auto number = std::to_string(fabric.broadcast(Value(getpid())).as_int());
  auto path = std::filesystem::temp_directory_path() / ("fabric_kinds_" + number + ".safetensors");
  auto weights = std::filesystem::temp_directory_path() / ("fabric_kinds_raw_" + number + ".safetensors");
  auto model = fabric.setup(torch::nn::Linear(2, 2));
  auto before = model->weight.detach().clone();
  fabric.save(path, {{"model", model}, {"step", 4}});
  if (rank == 0) fabric::make_checkpoint_io()->save(fabric::module_state_dict(*model), weights);
  {
    torch::NoGradGuard no_grad;
    model->weight.zero_();
  }
  // Rank 1 asks for what is not there.
  fabric::State state{{"model", model}, {rank == 1 ? "steps" : "step", 0}};
  auto text = error_of<fabric::CheckpointKeyError>([&] { fabric.load(path, state); });
  RANK_CHECK(holds(text, "'steps'") && (rank == 1 || holds(text, "rank 1: ")));
  // On rank 1 the module does not fit.
  torch::nn::Linear other(rank == 1 ? 3 : 2, 2);
  torch::nn::init::zeros_(other->weight);
  fabric::State misfit{{"model", other}};
  text = error_of<fabric::CheckpointKeyError>([&] { fabric.load(path, misfit); });
  RANK_CHECK(holds(text, "'weight'") && other->weight.sum().item<double>() == 0);
  text = error_of<fabric::CheckpointError>([&] { fabric.load(rank == 1 ? path.string() + ".none" : path.string()); });
  RANK_CHECK(holds(text, "No such file"));
  text = error_of<fabric::CheckpointError>(
      [&] { fabric.load_raw(rank == 1 ? weights.string() + ".none" : weights.string(), model); });
  RANK_CHECK(holds(text, "No such file") && (rank == 1 || holds(text, "rank 1: ")));
  RANK_CHECK(model->weight.sum().item<double>() == 0);
  text = error_of<fabric::CheckpointKeyError>([&] { fabric.load_raw(weights, other); });
  RANK_CHECK(holds(text, "'weight'") && other->weight.sum().item<double>() == 0);
  text = error_of<fabric::ConfigError>([&] {
    fabric.rank_zero_first([&] {
      if (rank == 1) throw fabric::ConfigError("no such recipe");
    });
  });
  RANK_CHECK(holds(text, "no such recipe"));
  fabric.barrier();
  fabric.load_raw(weights, model);
  RANK_CHECK(torch::equal(model->weight, before));
  fabric.barrier();
  if (rank == 0) std::filesystem::remove(path), std::filesystem::remove(weights);
}

BOTH_BACKENDS_TEST("two ranks: generators go on where each rank's were", "[fabric][ranks]", 2) {
  Fabric fabric(two_ranks());
  fabric.launch();
  auto number = std::to_string(fabric.broadcast(Value(getpid())).as_int());
  auto path = std::filesystem::temp_directory_path() / ("fabric_rng_" + number + ".safetensors");
  torch::manual_seed(100 + rank);
  fabric::RngState rng;
  fabric.save(path, {{"rng", rng}});
  auto next = torch::rand({4});
  auto both = fabric.all_gather(next);
  RANK_CHECK(!torch::equal(both[0], both[1]));
  torch::manual_seed(7);
  fabric::State state{{"rng", rng}};
  fabric.load(path, state);
  RANK_CHECK(torch::equal(torch::rand({4}), next));
  fabric.barrier();
  if (rank == 0) std::filesystem::remove(path);
}

BOTH_BACKENDS_TEST("two ranks: a save beside the training holds the state of its call", "[fabric][ranks]", 2) {
  Fabric fabric(two_ranks());
  fabric.launch();
  auto number = std::to_string(fabric.broadcast(Value(getpid())).as_int());
  auto path = std::filesystem::temp_directory_path() / ("fabric_beside_" + number + ".safetensors");
  auto weight = torch::full({1000}, 1.0);
  auto saving = fabric.save(path, {{"weight", weight}}, {.async = true});
  weight.fill_(2);
  saving->wait();
  RANK_CHECK(fabric.load(path).at("weight").as<at::Tensor>().mean().item<double>() == 1);
  auto lost = fabric.save("/proc/nowhere/x", {{"weight", weight}}, {.async = true});
  RANK_CHECK(holds(error_of<fabric::CheckpointError>([&] { lost->wait(); }), "/proc/nowhere"));
  fabric.barrier();
  if (rank == 0) std::filesystem::remove(path);
}

BOTH_BACKENDS_TEST("two ranks: loaders, local gradients and unequal numbers of batches", "[fabric][ranks]", 2) {
  Fabric fabric(two_ranks());
  fabric.launch();
  auto [model, optimizer] = fabric.setup(torch::nn::Linear(1, 1), [](auto p) { return torch::optim::SGD(p, 0.1); });
  std::vector<at::Tensor> items;
  for (int i = 0; i < 6; ++i) items.push_back(torch::full({1}, float(i)));
  auto [train, test] = fabric.setup_dataloaders({.batch_size = 1}, items, items);
  RANK_CHECK(train.size() == 3 && test.size() == 3);
  double seen = 0;
  for (auto& batch : test) seen += batch.sum().template item<double>();
  RANK_CHECK(seen == (rank == 0 ? 0 + 2 + 4 : 1 + 3 + 5));

  auto gradient_of = [&, &model = model](bool local) {
    model->zero_grad();
    auto scope = fabric.no_backward_sync(model, local);
    fabric.backward(model(torch::full({1, 1}, rank + 1.0)).sum());
    return model->weight.grad().item<double>();
  };
  RANK_CHECK(gradient_of(true) == rank + 1);
  RANK_CHECK(gradient_of(false) == 1.5);

  fabric.join(
      [&, &model = model, &optimizer = optimizer] {
        for (int step = 0; step < 2 + rank; ++step) {
          optimizer.zero_grad();
          fabric.backward(model(torch::ones({1, 1})).sum());
          optimizer.step();
        }
      },
      model);
  auto weights = fabric.all_gather(model->weight.detach());
  RANK_CHECK(torch::equal(weights[0], weights[1]));
}

#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <thread>

#include <fabric/fabric.h>
#include <fabric/helpers/checkpointing/model_checkpoint.h>
#include <fabric/helpers/checkpointing/resume.h>

#include "tests/support/checkpoints.h"
#include "tests/support/ranks.h"

using namespace checkpoint_test;
using fabric::Fabric;

namespace {

template <class Error, class Call>
std::string error_of(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

/// A folder that rank 0 made, its name known to all; it goes with rank 0.
struct SharedFolder {
  explicit SharedFolder(const Fabric& fabric) {
    if (fabric.is_global_zero()) own.emplace();
    path = fabric.broadcast(own ? own->path().string() : "").as_string();
  }
  std::optional<Folder> own;
  std::filesystem::path path;
};

void start(Fabric& fabric) {
  fabric.launch();
  at::set_num_threads(1);
}

Fabric::Config two_ranks(int world_size) { return {.accelerator = "cpu", .strategy = "ddp", .devices = world_size}; }

struct Outcomes : fabric::CheckpointObserver {
  int saves = 0, failures = 0;
  void before_save(const fabric::CheckpointEvent&) override { ++saves; }
  void save_failed(const fabric::CheckpointEvent&) override { ++failures; }
};

}  // namespace

TEST_CASE("through Fabric: beside the logs, in its format", "[checkpoint][fabric]") {
  Folder folder;
  Fabric fabric({.accelerator = "cpu",
                 .strategy = "single_device",
                 .checkpoint_io = "torch",
                 .loggers = {fabric::Choice("csv", {{"root_dir", folder.path().string()}})}});
  fabric.launch();
  auto [model, optimizer] =
      fabric.setup(torch::nn::Linear(2, 2), [](auto parameters) { return torch::optim::Adam(parameters, 0.1); });
  model(torch::ones({1, 2})).sum().backward();
  optimizer.step();
  for (bool async : {false, true}) {
    ModelCheckpoint keep({.monitor = "acc", .mode = "max", .async = async, .extension = ".pt"}, fabric);
    CHECK(keep.dirpath() == std::filesystem::weakly_canonical(fabric.logger().log_dir()) / "checkpoints");
    auto state = [&, &model = model, &optimizer = optimizer] {
      return State{{"model", model}, {"optimizer", optimizer}, {"keep", keep}};
    };
    CHECK(keep.update({{"acc", 0.5}}, state));
    CHECK(keep.update({{"acc", 0.75}}, state));
    keep.wait();
    CHECK(names_in(keep.dirpath()) == Names{"epoch=1-step=2.pt"});
    auto before = model->weight.clone();
    torch::NoGradGuard no_grad;
    model->weight.zero_();
    State loaded = state();
    fabric.load(keep.best_model_path(), loaded);
    CHECK(torch::equal(model->weight, before));
    std::filesystem::remove_all(keep.dirpath());
  }
}

TEST_CASE("a state that is copied beside the next passes is that of the call", "[checkpoint][fabric][async]") {
  Folder folder;
  Fabric fabric({.accelerator = "cpu", .strategy = "single_device"});
  fabric.launch();
  auto [model, optimizer] =
      fabric.setup(torch::nn::Linear(500, 400), [](auto parameters) { return torch::optim::Adam(parameters, 0.1); });
  ModelCheckpoint keep({.dirpath = folder.path(), .async = true, .copy_beside = true}, fabric);
  auto state = [&, &model = model, &optimizer = optimizer] {
    return State{{"model", model}, {"optimizer", optimizer}};
  };
  for (int i = 0; i < 5; ++i) {
    fabric.backward(model(torch::ones({1, 500})).sum());
    auto before = model->weight.detach().clone();
    CHECK(keep.update({}, state));
    optimizer.step();
    keep.wait();
    CHECK(torch::equal(fabric.load(keep.best_model_path()).at("model").at("weight").as<at::Tensor>(), before));
  }
  CHECK_THROWS_AS(ModelCheckpoint({.copy_beside = true}, fabric), fabric::ConfigError);
  CHECK_THROWS_AS(ModelCheckpoint({.async = true, .copy_beside = true}), fabric::ConfigError);
}

RANKS_TEST("ranks keep the same files, and rank 0 writes them", "[checkpoint][ranks]", 2) {
  Fabric fabric(two_ranks(world_size));
  start(fabric);
  SharedFolder folder(fabric);
  auto [model, optimizer] =
      fabric.setup(torch::nn::Linear(2, 2), [](auto parameters) { return torch::optim::SGD(parameters, 0.1); });
  for (bool async : {false, true}) {
    // Each rank names a folder of its own; that of rank 0 counts.
    auto mine = folder.path / (async ? "async" : "plain") / (rank == 0 ? "" : "elsewhere");
    ModelCheckpoint keep({.dirpath = mine.lexically_normal(),
                          .monitor = "acc",
                          .save_last = true,
                          .save_top_k = 2,
                          .mode = "max",
                          .async = async},
                         fabric);
    auto state = [&, &model = model, &optimizer = optimizer] {
      return State{{"model", model}, {"optimizer", optimizer}, {"keep", keep}};
    };
    auto update = [&](double acc) { return keep.update({{"acc", acc}}, state); };
    RANK_CHECK(update(1) && update(2));
    RANK_CHECK(!update(rank == 0 ? 9 : 0.5));  // good enough on one rank only
    RANK_CHECK(update(rank == 0 ? 3 : 4));     // the value of rank 0 counts
    RANK_CHECK(keep.best_model_score() == 3);
    RANK_CHECK(!update(rank == 0 ? 5 : std::nan("")));
    keep.wait();
    auto everywhere = fabric.all_gather(keep.state_dict().at("best_k_models").as_map().begin()->first).as_list();
    RANK_CHECK(everywhere[0].as_string() == everywhere[1].as_string());
    if (rank == 0) {
      RANK_CHECK(names_in(keep.dirpath()) ==
                 Names{"epoch=1-step=2.safetensors", "epoch=3-step=4.safetensors", "last.safetensors"});
      RANK_CHECK(!std::filesystem::exists(keep.dirpath() / "elsewhere"));
    }
    auto missing = error_of<fabric::ConfigError>([&] {
      keep.update(rank == 0 ? Metrics{{"acc", 9}} : Metrics{{"other", 1}}, state);
    });
    RANK_CHECK(missing.find(rank == 0 ? "not on every rank" : "other") != std::string::npos);
    fabric.barrier();
    auto point = fabric::resume_latest(keep.dirpath(), fabric);
    RANK_CHECK(std::filesystem::equivalent(point.path, keep.dirpath() / "epoch=3-step=4.safetensors"));  // or `last`
    State loaded = state();
    fabric.load(point.path, loaded);
    RANK_CHECK(keep.best_model_score() == 3);
  }
  fabric.barrier();
}

RANKS_TEST("folders that every rank writes its part of are kept, linked and resumed from", "[checkpoint][ranks]", 2) {
  auto config = two_ranks(world_size);
  config.checkpoint_io = "sharded";
  Fabric fabric(config);
  start(fabric);
  SharedFolder folder(fabric);
  auto [model, optimizer] =
      fabric.setup(torch::nn::Linear(2, 2), [](auto parameters) { return torch::optim::Adam(parameters, 0.1); });
  fabric::RngState rng;
  for (bool async : {false, true}) {
    ModelCheckpoint keep({.dirpath = folder.path / (async ? "async" : "plain"),
                          .monitor = "acc",
                          .save_last = true,
                          .mode = "max",
                          .async = async},
                         fabric);
    auto state = [&, &model = model, &optimizer = optimizer] {
      return State{{"model", model}, {"optimizer", optimizer}, {"keep", keep}, {"rng", rng}};
    };
    for (int epoch = 1; epoch <= 3; ++epoch) {
      optimizer.zero_grad();
      fabric.backward(model(torch::ones({1, 2})).sum());
      optimizer.step();
      RANK_CHECK(keep.update({{"acc", epoch}}, state));
    }
    keep.wait();
    auto weight = model->weight.detach().clone();
    fabric.barrier();
    RANK_CHECK(names_in(keep.dirpath()) == Names{"epoch=2-step=3.safetensors", "last.safetensors"});
    RANK_CHECK(names_in(keep.best_model_path()) ==
               Names{"index.json", "shard-00000-of-00002.safetensors", "shard-00001-of-00002.safetensors"});
    {
      torch::NoGradGuard no_grad;
      model->weight.zero_();
    }
    auto point = fabric::resume_latest(keep.dirpath(), fabric, {"rng"});
    RANK_CHECK(point && point.skipped.empty());
    State loaded = state();
    fabric.load(point.path, loaded);
    RANK_CHECK(torch::equal(model->weight, weight));
    RANK_CHECK(keep.best_model_score() == 3);
    fabric.barrier();
  }
}

RANKS_TEST("a failed write is an error on every rank, and costs nothing", "[checkpoint][ranks][bad]", 2) {
  Fabric fabric(two_ranks(world_size));
  start(fabric);
  SharedFolder folder(fabric);
  for (bool async : {false, true}) {
    std::atomic<bool> fail = false;
    auto write = [&](const std::filesystem::path& path, const Value& checkpoint) {
      if (rank != 0) throw std::logic_error("only rank 0 writes");
      if (fail) throw std::runtime_error("no space");
      fabric::make_checkpoint_io()->save(checkpoint, path);
    };
    ModelCheckpoint keep({.dirpath = folder.path / "f", .monitor = "loss", .async = async}, write, fabric);
    Outcomes observer;
    keep.add_observer(observer);
    keep.update({{"loss", 2}}, numbered(2));
    keep.wait();
    fail = true;
    auto work = [&] {
      keep.update({{"loss", 1}}, numbered(1));
      keep.wait();
    };
    // The caller's own exception stays what it is where it was thrown.
    auto told = rank == 0 ? error_of<std::runtime_error>(work) : error_of<fabric::CheckpointError>(work);
    RANK_CHECK(told.find(rank == 0 ? "no space" : "rank 0: no space") != std::string::npos);
    RANK_CHECK(observer.saves == 2 && observer.failures == 1);
    RANK_CHECK(keep.best_model_score() == 2);
    RANK_CHECK(number_in(keep.best_model_path()) == 2);
    fail = false;
    RANK_CHECK(keep.update({{"loss", 0}}, numbered(0)));
    keep.wait();
    RANK_CHECK(keep.best_model_score() == 0);
    RANK_CHECK(fabric.broadcast(7).as_int() == 7);
    fabric.barrier();
    if (rank == 0) std::filesystem::remove_all(folder.path / "f");
    fabric.barrier();
  }
}

RANKS_TEST("ranks agree on time and on signals", "[checkpoint][ranks][signal]", 2) {
  Fabric fabric(two_ranks(world_size));
  start(fabric);
  SharedFolder folder(fabric);
  ModelCheckpoint keep({.dirpath = folder.path,
                        .save_top_k = -1,
                        .train_time_interval = rank == 0 ? 0.05 : 1000,  // the clock of rank 0 counts
                        .save_on_signals = {"SIGUSR1"},
                        .agree_every_n_steps = 4},
                       fabric);
  std::vector<int> saved;
  int ended = 0;
  for (int step = 1; step <= 400 && !ended; ++step) {
    if (step == 42 && rank == 1) raise(SIGUSR1);
    if (keep.step(numbered(step), {.epoch = 0})) saved.push_back(step);
    if (keep.interrupted()) ended = step;
    std::this_thread::sleep_for(std::chrono::milliseconds(4));
  }
  RANK_CHECK(ended == 44);
  RANK_CHECK(saved.size() >= 2);
  for (int step : saved) RANK_CHECK(step % 4 == 0);
  auto everywhere = fabric.all_gather(std::to_string(saved.size())).as_list();
  RANK_CHECK(everywhere[0].as_string() == everywhere[1].as_string());
  if (rank == 0) RANK_CHECK(names_in(folder.path).size() == saved.size());
  fabric.barrier();
}

RANKS_TEST("an exception on every rank leaves one checkpoint, without any talk", "[checkpoint][ranks][exception]", 2) {
  Fabric fabric(two_ranks(world_size));
  start(fabric);
  SharedFolder folder(fabric);
  ModelCheckpoint keep({.dirpath = folder.path, .save_on_exception = true}, fabric);
  auto body = [&] {
    keep.step(numbered(1));
    if (rank == 0) throw std::out_of_range("only here");  // rank 1 knows nothing of it
  };
  auto told = error_of<std::out_of_range>([&] { keep.guard(numbered(5), body); });
  RANK_CHECK(told.empty() == (rank != 0));
  if (rank == 0) RANK_CHECK(number_in(folder.path / "epoch=0-step=1.safetensors") == 5);
  fabric.barrier();
}

// Ranks that call different things: `if (rank == 0) fabric.save(…)` is the usual way to get there.
#include <fabric/fabric.h>

#include <torch/torch.h>

#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <iostream>
#include <thread>

#include "tests/support/group_of_ranks.h"

using fabric::Fabric;
using fabric::MismatchError;
using std::chrono::steady_clock;

namespace {

template <class Action>
std::string mismatch_of(Action&& action) {
  auto begin = steady_clock::now();
  try {
    action();
  } catch (const MismatchError& error) {
    // Promptly, and not after the timeout of half an hour.
    RANK_CHECK(steady_clock::now() - begin < std::chrono::seconds(60));
    return error.what();
  }
  throw std::runtime_error("no MismatchError was thrown");
}

void require_parts(const std::string& text, const std::vector<std::string>& parts) {
  for (const auto& part : parts)
    if (text.find(part) == std::string::npos) ranks::fail(__FILE__, __LINE__, "'" + part + "' is missing in: " + text);
}

bool over_mpi() { return std::getenv("OMPI_COMM_WORLD_RANK") != nullptr; }

struct Trained {
  Fabric fabric{{.accelerator = "cpu",
                 .strategy = ranks::ddp_from_env(),
                 .devices = std::stoi(std::getenv(over_mpi() ? "OMPI_COMM_WORLD_SIZE" : "WORLD_SIZE"))}};
  torch::nn::Linear net{nullptr};
  std::unique_ptr<torch::optim::SGD> sgd;

  Trained() {
    fabric.launch();
    fabric.seed_everything(1, true, false);
    net = torch::nn::Linear(40, 30);
    sgd = std::make_unique<torch::optim::SGD>(net->parameters(), 0.01);
  }
};

struct NormedImpl : torch::nn::Module {
  torch::nn::Linear first{register_module("first", torch::nn::Linear(4, 4))};
  torch::nn::BatchNorm1d norm{register_module("norm", torch::nn::BatchNorm1d(4))};
  torch::nn::Linear second{register_module("second", torch::nn::Linear(4, 2))};
  at::Tensor forward(const at::Tensor& x) { return second(norm(first(x))); }
};
TORCH_MODULE(Normed);

std::filesystem::path checkpoint_path() {
  return std::filesystem::temp_directory_path() / ("fabric_mismatch_" + std::to_string(getpid()) + ".safetensors");
}

}  // namespace

BOTH_BACKENDS_TEST("a save on one rank against a ddp step on the other names both at once", "[fabric][mismatch]", 2) {
  Trained it;
  auto [model, optimizer] = it.fabric.setup(it.net, *it.sgd);
  auto step = [&, &model = model, &optimizer = optimizer] {
    optimizer.zero_grad();
    it.fabric.backward(model(torch::ones({4, 40})).sum());
    optimizer.step();
  };
  step();
  step();
  auto path = checkpoint_path();
  auto text = mismatch_of([&, &model = model] {
    if (rank == 0) it.fabric.save(path, {{"model", model}});
    step();
  });
  require_parts(text, {"rank 0: save", "rank 1: ddp step 3"});
  RANK_CHECK(!std::filesystem::exists(path));
  // The caller's group is as before, the model has to be set up again.
  RANK_CHECK(it.fabric.all_reduce(fabric::Value(1), fabric::ReduceOp::sum).as_int() == 2);
  auto again = it.fabric.setup_module(torch::nn::Linear(3, 3));
  it.fabric.backward(again(torch::ones({2, 3})).sum());
}

BOTH_BACKENDS_TEST("a barrier on one rank against a step, and an all_reduce against a save", "[fabric][mismatch]", 2) {
  Trained it;
  auto [model, optimizer] = it.fabric.setup(it.net, *it.sgd);
  auto loss = [&, &model = model] { return model(torch::ones({4, 40})).sum(); };
  auto text = mismatch_of([&] {
    auto value = loss();
    if (rank == 1)
      it.fabric.barrier("end of epoch");
    else
      it.fabric.backward(value);
  });
  require_parts(text, {"rank 0: ddp step 1", "rank 1: barrier(\"end of epoch\")"});
  text = mismatch_of([&, &model = model] {
    if (rank == 0)
      it.fabric.save(checkpoint_path(), {{"model", model}});
    else
      it.fabric.all_reduce(torch::ones({3}));
  });
  require_parts(text, {"rank 0: save", "rank 1: all_reduce(mean) of Float [3]"});
}

RANKS_TEST("of several ranks one is in a save and the others in a step", "[fabric][mismatch]", 3) {
  Trained it;
  auto [model, optimizer] = it.fabric.setup(it.net, *it.sgd);
  auto loss = model(torch::ones({4, 40})).sum();
  // They come one after the other.
  std::this_thread::sleep_for(std::chrono::milliseconds(700 * rank));
  auto text = mismatch_of([&, &model = model] {
    if (rank == 1)
      it.fabric.save(checkpoint_path(), {{"model", model}});
    else
      it.fabric.backward(loss);
  });
  require_parts(text, {"rank 0: ddp step 1", "rank 1: save", "rank 2: ddp step 1"});
  RANK_CHECK(it.fabric.all_reduce(fabric::Value(1), fabric::ReduceOp::sum).as_int() == 3);
}

// Buffers, buckets that are laid out anew and a graph that is static are waited for in other places.
RANKS_TEST("the other waits of a ddp step find a rank that is elsewhere, too", "[fabric][mismatch]", 2) {
  at::set_num_threads(1);
  for (bool is_static : {false, true}) {
    auto strategy = std::make_shared<fabric::DDPStrategy>(fabric::DDPStrategy::Config{.static_graph = is_static});
    Fabric fabric({.accelerator = "cpu", .devices = 2}, {.strategy = strategy});
    fabric.launch();
    auto model = fabric.setup_module(Normed());
    auto x = torch::randn({5, 4});
    auto elsewhere = [&] { fabric.barrier("elsewhere"); };
    if (!is_static) {
      fabric.backward(model(x).sum());
      require_parts(mismatch_of([&] { rank == 1 ? elsewhere() : fabric.backward(model(x).sum()); }),
                    {"rank 0: ddp step (rebuild of gradient buckets)", "rank 1: barrier(\"elsewhere\")"});
    } else {
      auto loss = model(x).sum();
      require_parts(mismatch_of([&] { rank == 1 ? elsewhere() : fabric.backward(loss); }),
                    {"rank 0: ddp step 1", "rank 1: barrier(\"elsewhere\")"});
    }
    RANK_CHECK(fabric.all_reduce(fabric::Value(1), fabric::ReduceOp::sum).as_int() == 2);
    fabric.shutdown();
  }
}

// A training run is killed at random moments, resumed, and must end with the weights of the run that never was.
#include <chrono>
#include <fstream>
#include <iostream>
#include <random>

#include <torch/torch.h>

#include <fabric/base/log.h>
#include <fabric/fabric.h>
#include <fabric/helpers.h>

#include "plugins/checkpoint_io/test_files.h"
#include "tests/support/killed_life.h"
#include "tests/support/ranks.h"

namespace {

namespace fs = std::filesystem;
using checkpoint_test::Folder;
using checkpoint_test::read_file;
using Clock = std::chrono::steady_clock;
using fabric::ModelCheckpoint;

constexpr int kEpochs = 4;

struct Samples {
  torch::Tensor x, y;
  Samples() {
    auto numbers = torch::arange(96 * 12, torch::kFloat).reshape({96, 12});
    x = torch::sin(numbers);
    y = (torch::cos(numbers).sum(1) * 10).to(torch::kLong).remainder(4);
  }
  torch::data::Example<> get(size_t index) const {
    auto at = static_cast<int64_t>(index);
    return {x[at], y[at]};
  }
  size_t size() const { return 96; }
};

struct Net : torch::nn::Module {
  torch::nn::Linear first{nullptr}, second{nullptr};
  torch::nn::Dropout dropout{nullptr};
  Net() {
    first = register_module("first", torch::nn::Linear(12, 24));
    dropout = register_module("dropout", torch::nn::Dropout(0.3));
    second = register_module("second", torch::nn::Linear(24, 4));
  }
  torch::Tensor forward(const torch::Tensor& x) { return second(dropout(torch::relu(first(x)))); }
};

void append(std::string& bytes, const torch::Tensor& tensor) {
  auto flat = tensor.detach().contiguous();
  bytes.append(static_cast<const char*>(flat.const_data_ptr()), flat.nbytes());
}

/// One life of the run. Goes on where the last one got, and writes at which step that was and, at the end, all weights.
void train(const fs::path& folder, bool async, int ranks) {
  at::set_num_threads(1);
  fabric::log::set_level(fabric::log::Level::error);
  fabric::Fabric fabric({.accelerator = "cpu", .strategy = ranks > 1 ? "ddp" : "single_device", .devices = ranks});
  fabric.launch();
  fabric.seed_everything(5, true, false);
  auto [model, optimizer] =
      fabric.setup(std::make_shared<Net>(), [](auto parameters) { return torch::optim::AdamW(parameters, 1e-2); });
  auto loader = fabric.setup_dataloader(Samples(), {.batch_size = 4, .shuffle = true});
  fabric::StepLR rate(*optimizer, {.step_size = 1, .gamma = 0.7});
  fabric::RngState rng;
  ModelCheckpoint due({.dirpath = folder / "kept", .save_last = "link", .every_n_train_steps = 3, .async = async},
                      fabric);
  ModelCheckpoint best({.dirpath = folder / "kept/best", .monitor = "loss", .save_top_k = 2, .async = async}, fabric);
  int64_t step = 0;
  auto state = [&, &model = model, &optimizer = optimizer] {
    return fabric::State{{"model", model},
                         {"optimizer", optimizer},
                         {"loader", loader},
                         {"rate", rate},
                         {"rng", rng},
                         {"due", due},
                         {"best", best},
                         {"step", step},
                         {"ballast", torch::full({1 << 18}, static_cast<double>(step))}};
  };

  if (auto found = fabric::resume_latest(folder / "kept", fabric)) {
    auto loaded = state();
    fabric.load(found.path, loaded);
    step = loaded.at("step").value()->as_int();
    // A megabyte, so that saving takes a while; all of it must be of one save.
    RANK_CHECK(loaded.at("ballast").value()->as<at::Tensor>().eq(static_cast<double>(step)).all().item<bool>());
  }
  if (fabric.is_global_zero()) std::ofstream(folder / "resumed") << step;

  while (loader.epoch() < kEpochs) {
    auto epoch = loader.epoch();
    for (auto& batch : loader) {
      optimizer.zero_grad();
      fabric.backward(torch::nn::functional::cross_entropy(model(batch.data), batch.target));
      optimizer.step();
      due.step(state, {.epoch = epoch, .step = ++step});
    }
    rate.step();
    torch::NoGradGuard no_grad;
    Samples all;
    model->eval();
    double loss = torch::nn::functional::cross_entropy(model->forward(all.x), all.y).item<double>();
    model->train();
    best.update({{"loss", loss}}, state, {.epoch = epoch, .step = step});
  }
  due.finish(state);
  best.finish(state);
  if (!fabric.is_global_zero()) return;
  std::string bytes;
  for (const auto& parameter : model->parameters()) append(bytes, parameter);
  append(bytes, torch::rand({4}));  // the random numbers went the same way, too
  bytes += std::to_string(fabric::get_lr(optimizer->param_groups()[0]));
  checkpoint_test::write_file(folder / "weights", bytes);
}

Life life(const fs::path& folder, bool async, int ranks) {
  return Life(ranks, [&] { train(folder, async, ranks); });
}

std::int64_t number_in(const fs::path& file) {
  std::int64_t number = 0;
  std::ifstream(file) >> number;
  return number;
}

struct Reference {
  std::string weights;
  std::chrono::microseconds length{};
  Reference(bool async, int ranks) {
    for (int i = 0; i < 3; ++i) {
      Folder folder;
      auto begin = Clock::now();
      life(folder.path(), async, ranks).finish();
      length = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - begin);
      auto bytes = read_file(folder / "weights");
      RANK_CHECK(bytes.size() > 1000);
      RANK_CHECK(i == 0 || bytes == weights);  // without this nothing below means anything
      weights = bytes;
    }
  }
};

/// `count` runs, each killed once at a moment of its own and then resumed. Prints what the kills met.
void kill_runs(int count, bool async, int ranks, unsigned seed) {
  Reference reference(async, ranks);
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> moment(0.0, 1.0);
  int killed = 0, resumed = 0, half_written = 0;
  for (int tries = 0; killed < count && tries < 3 * count; ++tries) {
    Folder folder;
    auto time = std::chrono::microseconds(static_cast<std::int64_t>(moment(random) * reference.length.count()));
    if (!life(folder.path(), async, ranks).kill_after(time)) continue;  // it had ended already
    ++killed;
    for (const auto& entry : fs::recursive_directory_iterator(folder.path()))
      half_written += entry.path().string().find(".partial") != std::string::npos;
    fs::remove(folder / "weights");
    life(folder.path(), async, ranks).finish();
    resumed += number_in(folder / "resumed") > 0;
    RANK_CHECK(read_file(folder / "weights") == reference.weights);
  }
  std::cout << killed << " runs killed, " << resumed << " resumed from a checkpoint, " << half_written
            << " files half written" << std::endl;
  RANK_CHECK(killed == count);
  RANK_CHECK(resumed >= count / 3);  // the others died before the first file
}

void require_body(const std::string& body) {
  auto outcome = ranks::run(body, {.world_size = 1, .timeout_seconds = 200}).at(0);
  INFO(outcome.output);
  CHECK(outcome.exit_code == 0);
  std::cout << body << ": " << outcome.output;
}

}  // namespace

RANKS_BODY("killed at random moments") { kill_runs(50, false, 1, 1); }
RANKS_BODY("killed at random moments, files written beside the training") { kill_runs(50, true, 1, 2); }
RANKS_BODY("killed at random moments, two ranks") { kill_runs(4, false, 2, 3); }
RANKS_BODY("killed at random moments, two ranks, files written beside the training") { kill_runs(4, true, 2, 4); }

// One run that is killed again and again, each time after living for long enough to get a little further on average.
RANKS_BODY("killed again and again") {
  Reference reference(true, 1);
  Folder folder;
  std::mt19937 random(9);
  std::uniform_real_distribution<double> moment(0.1, 0.5);
  int kills = 0;
  while (kills < 60 && !fs::exists(folder / "weights")) {
    auto time = std::chrono::microseconds(static_cast<std::int64_t>(moment(random) * reference.length.count()));
    kills += life(folder.path(), true, 1).kill_after(time);
  }
  if (!fs::exists(folder / "weights")) life(folder.path(), true, 1).finish();
  std::cout << kills << " kills in one run" << std::endl;
  RANK_CHECK(kills >= 1);
  RANK_CHECK(read_file(folder / "weights") == reference.weights);
}

TEST_CASE("a run killed at 50 moments ends with the weights of the run that never was", "[kill]") {
  require_body("killed at random moments");
}
TEST_CASE("the same 50 times with files that are written beside the training", "[kill]") {
  require_body("killed at random moments, files written beside the training");
}
TEST_CASE("one run that is killed again and again ends with the same weights", "[kill]") {
  require_body("killed again and again");
}
TEST_CASE("two ranks that are killed at once end with the same weights", "[kill][ranks]") {
  require_body("killed at random moments, two ranks");
  require_body("killed at random moments, two ranks, files written beside the training");
}

// What the fine-tuning scheduler costs: an epoch's start without a transition, and a transition against the loading of
// the checkpoint that it restores.
#include <torch/torch.h>

#include <unistd.h>

#include <filesystem>

#include <fabric/helpers/checkpointing/model_checkpoint.h>
#include <fabric/helpers/early_stopping.h>
#include <fabric/helpers/finetuning/finetuning_scheduler.h>
#include <fabric/helpers/lr/lr_schedulers.h>
#include <fabric/plugins/checkpoint_io/checkpoint_io.h>

#include "tests/bench/bench.h"

namespace {

constexpr int kLayers = 500;  // of two tensors each
constexpr int kWidth = 128;
constexpr int kLayersPerPhase = 5;

struct NetImpl : torch::nn::Module {
  NetImpl() {
    for (int i = 0; i < kLayers; ++i) register_module("layer" + std::to_string(i), torch::nn::Linear(kWidth, kWidth));
  }
};
TORCH_MODULE(Net);

// All gradients at once; the forward pass is of no interest here.
void step(Net& net, torch::optim::Optimizer& optimizer) {
  for (auto& parameter : net->parameters())
    if (parameter.requires_grad()) parameter.mutable_grad() = torch::ones_like(parameter);
  optimizer.step();
  optimizer.zero_grad();
}

fabric::FinetuningScheduler::Config settings(const std::string& folder) {
  fabric::FinetuningScheduler::Config config;
  fabric::Tree::Map phases;
  // Half of the model at first, so that the checkpoint holds moments of that half, then a few layers a phase.
  for (int first = kLayers / 2, phase = 0; first >= 0; first -= kLayersPerPhase, ++phase) {
    fabric::Tree::List names;
    for (int i = first; i < (phase == 0 ? kLayers : first + kLayersPerPhase); ++i)
      names.push_back("layer" + std::to_string(i));
    phases[std::to_string(phase)] = fabric::Tree::Map{{"params", names}};
  }
  config.ft_schedule = phases;
  config.log_dir = folder;
  config.logging_level = "error";
  return config;
}

}  // namespace

int main() {
  at::set_num_threads(1);
  const auto folder =
      std::filesystem::temp_directory_path() / ("fabric_bench_finetuning_" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  {
    Net net;
    auto optimizer = std::make_shared<torch::optim::AdamW>(net->parameters(), 1e-3);
    fabric::StepLR lr(*optimizer, {.step_size = 1, .gamma = 0.9});
    fabric::FinetuningScheduler schedule(settings(folder), net, optimizer, lr);
    fabric::EarlyStopping stop({.monitor = "loss"});
    fabric::ModelCheckpoint keep({.dirpath = folder / "ckpt", .monitor = "loss"});
    schedule.attach(stop, keep);
    schedule.epoch_start(0);
    step(net, *optimizer);
    fabric::State state{{"model", net}, {"optimizer", *optimizer}};
    keep.update({{"loss", 1.0}}, state, {.epoch = 0, .step = 1});
    schedule.epoch_end();

    bench::header();
    double start = 1e300;
    for (int round = 0; round < 20; ++round)
      start = std::min(start, bench::time_us([&] { schedule.epoch_start(1); }, 100));
    bench::figure("epoch_start, no transition, 1,000 tensors", start, "us", 50);

    const std::string path = keep.best_model_path();
    auto load = [&] {
      // As a resumed run does it: the checkpoint into a model and an optimizer of the same phase.
      static Net other;
      static torch::optim::AdamW adam(
          [] {
            std::vector<at::Tensor> tensors;
            for (int i = kLayers / 2; i < kLayers; ++i)
              for (auto& t : other->named_children()["layer" + std::to_string(i)]->parameters()) tensors.push_back(t);
            return tensors;
          }(),
          1e-3);
      fabric::State target{{"model", other}, {"optimizer", adam}};
      fabric::restore_state(target, fabric::make_checkpoint_io()->load(path), fabric::StateAccess::plain());
    };
    bench::Pair best;
    load();
    for (int epoch = 2; schedule.depth_remaining() > 0; ++epoch) {
      best.theirs = std::min(best.theirs, bench::time_us(load, 1));
      stop.set_phase_complete(true);
      best.ours = std::min(best.ours, bench::time_us([&] { schedule.epoch_start(epoch); }, 1));
    }
    bench::row("transition, restoring the best / loading it", best.ours / 1000, best.theirs / 1000, "ms", 1.2);
  }
  std::filesystem::remove_all(folder);
}

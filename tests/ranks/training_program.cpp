// A real, small training on Fabric that tests start under launchers: it trains and resumes, hangs, or fails.
//   training_program --deed train --checkpoint FILE --steps 20 [--fabric.…]
#include <torch/torch.h>

#include <chrono>
#include <filesystem>
#include <iostream>
#include <stdexcept>
#include <thread>

#include <fabric/config/parse.h>
#include <fabric/fabric.h>
#include <fabric/launcher/preemption.h>

namespace {

struct Config {
  std::string deed = "train";
  std::string checkpoint = {};
  int steps = 5;
  double step_seconds = 0;
  fabric::Fabric::Config fabric = {.accelerator = "cpu"};
  FABRIC_FIELDS(Config, deed, checkpoint, steps, step_seconds, fabric)
};

void sleep_for(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

// In one write, so that lines of several ranks on one pipe stay whole.
void say(const std::string& text) { std::cout << text + "\n" << std::flush; }

int train(fabric::Fabric& fabric, const Config& config) {
  fabric::PreemptionSignal preemption;
  torch::manual_seed(1);
  auto [model, optimizer] =
      fabric.setup(torch::nn::Linear(4, 1), [](auto parameters) { return torch::optim::SGD(parameters, 0.1); });
  std::int64_t step = 0;
  fabric::State state = {{"model", model}, {"optimizer", optimizer}, {"step", step}};
  if (!config.checkpoint.empty() && std::filesystem::exists(config.checkpoint)) {
    fabric.load(config.checkpoint, state);
    step = state["step"].value()->as_int();
    say("resumed rank " + std::to_string(fabric.global_rank()) + " at step " + std::to_string(step) + " restarts " +
        std::to_string(fabric::restart_count()));
  } else {
    say("begins rank " + std::to_string(fabric.global_rank()) + " of " + std::to_string(fabric.world_size()));
  }
  for (; step < config.steps; ++step) {
    fabric.heartbeat(step);
    optimizer.zero_grad();
    fabric.backward(model(torch::ones({2, 4})).pow(2).mean());
    optimizer.step();
    sleep_for(config.step_seconds);
    // The signal comes to the ranks at different steps.
    bool ends =
        fabric.all_reduce(fabric::Value(preemption.received() ? 1.0 : 0.0), fabric::ReduceOp::max).as_double() > 0;
    if (!ends || config.checkpoint.empty()) continue;
    fabric.save(config.checkpoint, {{"model", model}, {"optimizer", optimizer}, {"step", step + 1}});
    say("saved rank " + std::to_string(fabric.global_rank()) + " at step " + std::to_string(step + 1));
    if (fabric.is_global_zero()) fabric::requeue_job();
    return 0;
  }
  say("ends rank " + std::to_string(fabric.global_rank()) + " at step " + std::to_string(step));
  return 0;
}

[[gnu::noinline]] void lose_data(int rank) {
  throw std::runtime_error("the data of rank " + std::to_string(rank) + " are lost");
}

int fail(fabric::Fabric& fabric) {
  if (fabric.global_rank() == 1) lose_data(1);
  fabric.barrier();
  return 0;
}

int hang(fabric::Fabric& fabric) {
  fabric.heartbeat(0);
  fabric.heartbeat(1);
  auto epoch = fabric.section("epoch");
  if (fabric.global_rank() == 1) {
    auto section = fabric.section("all_reduce");
    sleep_for(100);
  }
  fabric.barrier("epoch_end");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  auto config = fabric::parse<Config>(argc, argv);
  if (config.deed == "contradict") config.fabric.precision = "64-true";
  fabric::Fabric fabric(config.fabric);
  fabric.launch();
  if (config.deed == "fail") return fail(fabric);
  if (config.deed == "hang") return hang(fabric);
  if (config.deed == "describe") return say(fabric.describe()), 0;
  return train(fabric, config);
}

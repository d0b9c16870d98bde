#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <fabric/helpers/checkpointing/model_checkpoint.h>
#include <fabric/helpers/early_stopping.h>
#include <fabric/helpers/finetuning/finetuning_scheduler.h>
#include <fabric/helpers/lr/lr_schedulers.h>
#include <fabric/plugins/checkpoint_io/checkpoint_io.h>

#include "tests/support/finetuning_support.h"

// Runs of the fine-tuning scheduler with scripted losses, and what was seen at the start of each epoch.
namespace finetuning_test {

using Lrs = std::vector<double>;

struct Script {
  fabric::FinetuningScheduler::Config config = {};
  std::vector<double> losses = {5, 4, 3};  // the last goes on for ever
  int patience = 1;
  bool early_stopping = true;
  bool checkpoints = true;
  int save_top_k = 1;
  int epochs = 30;  // of the loop, whatever the scheduler says
  int steps = 1;    // per epoch
  int checks = 1;   // validations per epoch
  double lr = 1e-3;
  bool only_phase0 = false;  // the optimizer is made of the last layer alone
  double weight_decay = 0;
  std::function<std::unique_ptr<fabric::LRScheduler>(torch::optim::Optimizer&)> scheduler =
      [](torch::optim::Optimizer& optimizer) {
        return std::make_unique<fabric::StepLR>(optimizer, fabric::StepLR::Config{.step_size = 1, .gamma = 0.7});
      };
  std::optional<double> stopping_threshold = {};
  std::optional<fabric::Peers> peers = {};
};

/// Everything of one run, as a user's program would have it.
struct Run {
  explicit Run(Script given, Net net_given = Net(), std::optional<std::string> folder_given = {})
      : script(std::move(given)), net(std::move(net_given)), dirpath(folder_given.value_or(folder.file("ckpt"))) {
    auto params = script.only_phase0 ? std::vector<at::Tensor>{net->parameters().end()[-2], net->parameters().end()[-1]}
                                     : net->parameters();
    optimizer = std::make_shared<torch::optim::SGD>(
        params, torch::optim::SGDOptions(script.lr).momentum(0.9).weight_decay(script.weight_decay));
    if (script.scheduler) lr = script.scheduler(*optimizer);
    auto config = script.config;
    if (config.log_dir.empty()) config.log_dir = folder.path.string();
    fabric::Peers peers = script.peers.value_or(fabric::Peers());
    if (lr)
      schedule = std::make_unique<fabric::FinetuningScheduler>(
          config, net, optimizer, lr, fabric::FinetuningScheduler::Parts{.peers = peers, .messages = said.sink()});
    else
      schedule = std::make_unique<fabric::FinetuningScheduler>(
          config, net, optimizer, nullptr, fabric::FinetuningScheduler::Parts{.peers = peers, .messages = said.sink()});
    if (script.early_stopping) {
      stop = std::make_unique<fabric::EarlyStopping>(
          fabric::EarlyStopping::Config{
              .monitor = "val_loss", .patience = script.patience, .stopping_threshold = script.stopping_threshold},
          peers);
      schedule->attach(*stop);
    }
    if (script.checkpoints) {
      keep = std::make_unique<fabric::ModelCheckpoint>(
          fabric::ModelCheckpoint::Config{.dirpath = dirpath, .monitor = "val_loss", .save_top_k = script.save_top_k},
          peers);
      schedule->attach(*keep);
    }
  }

  fabric::State state() {
    fabric::State out{{"model", net}, {"optimizer", optimizer}, {"schedule", *schedule}};
    if (stop) out["stop"] = *stop;
    if (keep) out["keep"] = *keep;
    return out;
  }

  double loss(int epoch) const {
    return script.losses[std::min(static_cast<std::size_t>(epoch), script.losses.size() - 1)];
  }

  void train(int epoch) {
    torch::manual_seed(1000 + epoch);  // the same data whether the run was resumed or not
    for (int i = 0; i < script.steps; ++i) {
      schedule->step_start();
      optimizer->zero_grad();
      net->forward(torch::randn({4, 3})).square().mean().backward();
      optimizer->step();
      schedule->step_end();
    }
  }

  void look() {
    depth.push_back(schedule->curr_depth());
    Lrs rates;
    for (auto& group : optimizer->param_groups()) rates.push_back(group.options().get_lr());
    lrs.push_back(rates);
    states.push_back(static_cast<int>(optimizer->state().size()));
    thawed.push_back(static_cast<int>(schedule->thawed_params().size()));
    groups.push_back(static_cast<int>(optimizer->param_groups().size()));
    best_depth.push_back(schedule->best_ckpt_depth());
  }

  Run& go(int first = 0) {
    for (int epoch = first; epoch < script.epochs && !schedule->done() && !(stop && stop->stopped()); ++epoch) {
      last = epoch;
      if (before_epoch) before_epoch(epoch);
      if (schedule->epoch_start(epoch) && after_transition) after_transition(epoch);
      look();
      train(epoch);
      fabric::Metrics metrics{{"val_loss", loss(epoch)}};
      for (int i = 0; i < script.checks; ++i) {
        if (i > 0) metrics["val_loss"] = loss(epoch + 100);
        if (stop) stop->check(metrics, epoch);
        if (keep)
          keep->update(metrics, [this] { return state(); }, {.epoch = epoch, .step = schedule->ft_global_steps()});
      }
      schedule->epoch_end({{"val_loss", loss(epoch)}});
      if (after_epoch) after_epoch(epoch);
    }
    return *this;
  }

  Script script;
  Folder folder;
  Net net;
  std::string dirpath;
  Said said;
  std::shared_ptr<torch::optim::Optimizer> optimizer;
  std::unique_ptr<fabric::LRScheduler> lr;
  std::unique_ptr<fabric::FinetuningScheduler> schedule;
  std::unique_ptr<fabric::EarlyStopping> stop;
  std::unique_ptr<fabric::ModelCheckpoint> keep;
  std::function<void(int epoch)> before_epoch, after_transition, after_epoch;
  int last = -1;
  // at the start of each epoch
  std::vector<int> depth, states, thawed, groups, best_depth;
  std::vector<Lrs> lrs;
};

inline bool close(const Lrs& found, const Lrs& expected, double tolerance = 1e-6) {
  if (found.size() != expected.size()) return false;
  for (std::size_t i = 0; i < found.size(); ++i)
    if (std::abs(found[i] - expected[i]) > tolerance * std::max(std::abs(expected[i]), 1e-6)) return false;
  return true;
}

inline std::string shown(const Lrs& lrs) {
  std::ostringstream out;
  out.precision(9);
  for (double lr : lrs) out << lr << ' ';
  return out.str();
}

using Ints = std::vector<int>;

inline fabric::Tree tree(const std::string& yaml) { return fabric::read_yaml(yaml); }

}  // namespace finetuning_test

#define CHECK_LRS(found, ...)                                                \
  do {                                                                       \
    INFO("found " << ::finetuning_test::shown(found));                       \
    CHECK(::finetuning_test::close(found, std::vector<double> __VA_ARGS__)); \
  } while (false)

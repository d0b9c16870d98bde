#include <torch/optim/adam.h>

#include "tests/support/finetuning_trace.h"

using namespace finetuning_test;
using namespace fabric;

namespace {

Script kept_all() {
  Script script;
  script.save_top_k = -1;
  return script;
}

std::string checkpoint_of(const Run& run, int epoch) {
  return run.dirpath + "/epoch=" + std::to_string(epoch) + "-step=" + std::to_string((epoch + 1) * run.script.steps) +
         ".safetensors";
}

void resume(Run& run, const std::string& path) {
  State state = run.state();
  restore_state(state, make_checkpoint_io()->load(path), StateAccess::plain());
}

template <class T>
std::vector<T> tail(const std::vector<T>& all, int from) {
  return {all.begin() + from, all.end()};
}

bool same_weights(Run& a, Run& b) {
  auto left = a.net->parameters(), right = b.net->parameters();
  for (std::size_t i = 0; i < left.size(); ++i)
    if (!torch::equal(left[i], right[i])) return false;
  return true;
}

// Runs once to the end, then again from each epoch's checkpoint, in the same folder and in another.
void check_resuming_everywhere(const Script& script) {
  torch::manual_seed(1);
  Net net;
  auto fresh = [&] {
    torch::NoGradGuard no_grad;
    Net copy;
    for (std::size_t i = 0; i < net->parameters().size(); ++i) copy->parameters()[i].copy_(net->parameters()[i]);
    return copy;
  };
  Run whole(script, fresh());
  whole.go();
  for (int epoch = 0; epoch < whole.last; ++epoch)
    for (bool same_folder : {true, false}) {
      Script first_part = script;
      first_part.epochs = epoch + 1;
      Run first(first_part, fresh());
      first.go();
      Run second(script, Net(), same_folder ? first.dirpath : std::optional<std::string>());
      resume(second, checkpoint_of(first, epoch));
      second.go(epoch + 1);
      INFO("resumed after epoch " << epoch << (same_folder ? "" : " in another folder") << "\n" << second.said.text());
      CHECK(second.depth == tail(whole.depth, epoch + 1));
      CHECK(second.thawed == tail(whole.thawed, epoch + 1));
      CHECK(second.groups == tail(whole.groups, epoch + 1));
      for (std::size_t i = 0; i < second.lrs.size(); ++i)
        CHECK(close(second.lrs[i], whole.lrs[static_cast<std::size_t>(epoch) + 1 + i], 1e-12));
      CHECK(second.last == whole.last);
      // In another folder the next checkpoint counts as the best so far.
      if (!same_folder) continue;
      CHECK(second.states == tail(whole.states, epoch + 1));
      CHECK(same_weights(second, whole));
      CHECK(second.schedule->restore_count() == whole.schedule->restore_count());
    }
}

}  // namespace

TEST_CASE("a resumed run goes on as if it had never stopped", "[finetuning][resume]") {
  check_resuming_everywhere(kept_all());
  auto limited = kept_all();
  limited.config.max_depth = 1;
  check_resuming_everywhere(limited);
}

TEST_CASE("resuming after new optimizers and schedulers", "[finetuning][resume]") {
  auto script = kept_all();
  script.config.restore_best = false;
  script.config.ft_schedule = tree(
      "0: {params: [model.3]}\n1: {params: [model.2], new_optimizer: {optimizer_init: {class_path: torch.optim.Adam, "
      "init_args: {lr: 2.0e-4}}}}\n2: {params: [model.1], new_lr_scheduler: {lr_scheduler_init: {class_path: "
      "ExponentialLR, init_args: {gamma: 0.5}}}}\n3: {params: [model.0]}");
  check_resuming_everywhere(script);
}

TEST_CASE("resuming with a plateau scheduler, whose step comes after the checkpoint", "[finetuning][resume]") {
  auto script = kept_all();
  script.config.lr_stepping.monitor = "val_loss";
  script.scheduler = [](torch::optim::Optimizer& optimizer) {
    return std::make_unique<ReduceLROnPlateau>(optimizer, ReduceLROnPlateau::Config{.factor = 0.5, .patience = 0});
  };
  check_resuming_everywhere(script);
}

TEST_CASE("resuming with no_decay, refreezing and phases that end at epochs", "[finetuning][resume]") {
  auto script = kept_all();
  script.config.no_decay = {"bias"};
  script.weight_decay = 0.1;
  script.config.epoch_transitions_only = true;
  script.early_stopping = false;
  script.config.ft_schedule = tree(
      "0: {params: [model.3], max_transition_epoch: 2}\n1: {params: [model.2], freeze: [model.3.bias], "
      "max_transition_epoch: 4}\n2: {params: [model.1], max_transition_epoch: 6}");
  check_resuming_everywhere(script);
}

TEST_CASE("resuming from a checkpoint that is not the best trains all thawed phases on", "[finetuning][resume]") {
  Script script = kept_all();
  script.losses = {5, 4, 3, 3, 9};  // from epoch 4 on, in phase 1, everything is worse than phase 0's best
  script.epochs = 5;
  Run first(script);
  first.go();
  REQUIRE(first.schedule->curr_depth() == 1);
  REQUIRE(first.schedule->best_ckpt_depth() == 0);
  script.epochs = 30;
  Run second(script, Net(), first.dirpath);
  resume(second, checkpoint_of(first, 4));
  CHECK(second.schedule->best_ckpt_depth() == 0);
  CHECK(second.schedule->curr_depth() == 1);
  second.go(5);
  CHECK(second.depth == Ints{2, 3});
  CHECK(second.groups == Ints{3, 4});
  for (auto& group : second.optimizer->param_groups()) CHECK(group.params().size() == 2);
  CHECK(second.said.informed("resumed in phase 1 of 3, after epoch 4"));
}

TEST_CASE("a phase that was complete when it was saved is complete when it is resumed", "[finetuning][resume]") {
  Script script = kept_all();
  script.epochs = 4;  // patience ran out in epoch 3's check
  Run first(script);
  first.go();
  REQUIRE(first.stop->phase_complete());
  Run second(script, Net(), first.dirpath);
  resume(second, checkpoint_of(first, 3));
  CHECK(second.stop->phase_complete());
  CHECK(second.schedule->epoch_start(4));
  CHECK(second.schedule->curr_depth() == 1);
}

TEST_CASE("state that does not fit is refused, nothing changed", "[finetuning][resume]") {
  Run first(kept_all());
  first.go();
  const std::string late = checkpoint_of(first, 5);  // in phase 2
  auto refused = [&](auto change) {
    Script script = kept_all();
    change(script);
    Run run(script);
    auto groups = run.optimizer->param_groups().size();
    auto thawed = run.schedule->thawed_params();
    std::string error = error_of<CheckpointKeyError>([&] { resume(run, late); });
    CHECK(run.optimizer->param_groups().size() == groups);
    CHECK(run.schedule->thawed_params() == thawed);
    CHECK(run.schedule->curr_depth() == 0);
    return error;
  };
  CHECK(
      contains(refused([](Script& s) { s.config.ft_schedule = tree("0: {params: [model.3]}\n1: {params: [<rest>]}"); }),
               "saved in phase 2, and the schedule has phases 0 to 1 only"));
  CHECK(contains(refused([](Script& s) {
                   s.config.ft_schedule =
                       tree("0: {params: [model.3.bias]}\n1: {params: [model.2]}\n2: {params: [<rest>]}");
                 }),
                 "'model.3.weight' is no longer in it"));
  CHECK(contains(refused([](Script& s) { s.scheduler = nullptr; }), "there is none now"));
  CHECK(contains(refused([](Script& s) {
                   s.scheduler = [](torch::optim::Optimizer& optimizer) {
                     return std::make_unique<ConstantLR>(optimizer);
                   };
                 }),
                 "saved with StepLR, the learning-rate scheduler is ConstantLR"));
  Run run(kept_all());
  Value damaged = make_checkpoint_io()->load(late).at("schedule");
  damaged.as_map().erase("groups");
  CHECK(contains(error_of<CheckpointKeyError>([&] { run.schedule->load_state_dict(damaged); }), "groups"));
  CHECK(error_of<CheckpointKeyError>([&] { run.schedule->load_state_dict(Value(3)); }) != "");
  Run other(kept_all(), Net(3));  // another model
  CHECK(error_of<CheckpointKeyError>([&] { resume(other, late); }) != "");
}

TEST_CASE("another optimizer class than the saved one is refused", "[finetuning][resume]") {
  Run first(kept_all());
  first.go();
  Net net;
  std::shared_ptr<torch::optim::Optimizer> adam = std::make_shared<torch::optim::Adam>(net->parameters(), 1e-3);
  FinetuningScheduler::Config config;
  config.log_dir = first.folder.path.string();
  config.logging_level = "error";
  FinetuningScheduler schedule(config, net, adam);
  State state{{"model", net}, {"optimizer", adam}, {"schedule", schedule}};
  const auto text = error_of<CheckpointKeyError>(
      [&] { restore_state(state, make_checkpoint_io()->load(checkpoint_of(first, 5)), StateAccess::plain()); });
  CHECK_THAT(text, Catch::Contains("saved with SGD, the optimizer is Adam"));
}

TEST_CASE("later phases may change, with a warning", "[finetuning][resume]") {
  Script script = kept_all();
  script.config.ft_schedule = tree("0: {params: [model.3]}\n1: {params: [model.2]}\n2: {params: [model.1]}");
  script.epochs = 5;
  Run first(script);
  first.go();
  script.epochs = 30;
  script.config.ft_schedule = tree("0: {params: [model.3]}\n1: {params: [model.2]}\n2: {params: [<rest>], lr: 2.0e-5}");
  Run second(script, Net(), first.dirpath);
  resume(second, checkpoint_of(first, 4));
  CHECK(second.said.warned("the rest goes by the new one"));
  second.go(5);
  CHECK(second.thawed.back() == 8);
  CHECK(second.lrs.back().back() == Approx(2e-5));
}

TEST_CASE("the state loads without an EarlyStopping when epochs alone end phases", "[finetuning][resume]") {
  Script script = kept_all();
  script.config.epoch_transitions_only = true;
  script.early_stopping = false;
  script.config.ft_schedule =
      tree("0: {params: [model.3], max_transition_epoch: 2}\n1: {params: [<rest>], max_transition_epoch: 5}");
  script.epochs = 3;
  Run first(script);
  first.go();
  Run second(script, Net(), first.dirpath);
  resume(second, checkpoint_of(first, 2));
  CHECK(second.schedule->curr_depth() == 1);
  CHECK(second.schedule->thawed_params().size() == 8);
}

TEST_CASE("checkpoints deleted or damaged between phases", "[finetuning][resume]") {
  for (std::string how : {"deleted", "truncated", "garbage", "without the model", "without the optimizer"}) {
    Run run{Script{}};
    run.after_epoch = [&](int epoch) {
      if (epoch != 3) return;
      auto best = run.keep->best_model_path();
      if (how == "deleted") std::filesystem::remove(best);
      if (how == "truncated") std::filesystem::resize_file(best, std::filesystem::file_size(best) / 2);
      if (how == "garbage") std::ofstream(best) << "no checkpoint at all";
      if (how.starts_with("without")) {
        Value file = make_checkpoint_io()->load(best);
        file.as_map().erase(how == "without the model" ? "model" : "optimizer");
        make_checkpoint_io()->save(file, best);
      }
    };
    std::string error = error_of<CheckpointError>([&] { run.go(); });
    INFO(how << ": " << error);
    CHECK(contains(error, run.keep->best_model_path().filename().string()));
    CHECK(run.schedule->curr_depth() == 0);
    CHECK(run.optimizer->param_groups().size() == 1);
    CHECK(run.schedule->thawed_params().size() == 2);
  }
}

TEST_CASE("a run whose state names other entries finds model and optimizer", "[finetuning][resume]") {
  Net net;
  Folder folder;
  auto optimizer = std::make_shared<torch::optim::SGD>(net->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
  FinetuningScheduler::Config config;
  config.log_dir = folder.path.string();
  config.logging_level = "error";
  FinetuningScheduler schedule(config, net, optimizer);
  EarlyStopping stop({.monitor = "loss", .patience = 1});
  ModelCheckpoint keep({.dirpath = folder.file("c"), .monitor = "loss"});
  schedule.attach(stop, keep);
  for (int epoch = 0; epoch < 3; ++epoch) {
    schedule.epoch_start(epoch);
    stop.check({{"loss", 1.0}}, epoch);
    keep.update({{"loss", 1.0}}, State{{"encoder", net}, {"sgd", *optimizer}, {"note", "text"}},
                {.epoch = epoch, .step = epoch + 1});
    schedule.epoch_end();
  }
  CHECK(schedule.restore_count() == 1);
  CHECK(schedule.curr_depth() == 1);
}

// When ModelCheckpoint saves: steps, epochs, time, the end of training, signals, exceptions.
#include <signal.h>

#include <chrono>

#include <fabric/base/error.h>
#include <fabric/helpers/checkpointing/model_checkpoint.h>

#include "tests/support/checkpoints.h"

using namespace checkpoint_test;

TEST_CASE("steps trigger, once per step and never before the first", "[checkpoint][trigger]") {
  Folder folder;
  ModelCheckpoint keep({.dirpath = folder.path(), .save_top_k = -1, .every_n_train_steps = 3});
  CHECK_FALSE(keep.step(numbered(0), {.step = 0}));
  std::vector<int> saved;
  for (int step = 1; step <= 7; ++step) {
    if (keep.step(numbered(step), {.epoch = 0})) saved.push_back(step);
    CHECK_FALSE(keep.step(numbered(step), {.epoch = 0, .step = step}));
  }
  CHECK(saved == std::vector<int>{3, 6});
  CHECK_FALSE(keep.update({}, numbered(7)));  // no epoch trigger
  CHECK(names_in(folder) == Names{"epoch=0-step=3.safetensors", "epoch=0-step=6.safetensors"});
}

TEST_CASE("a function makes the state only when it is needed", "[checkpoint][trigger]") {
  Folder folder;
  ModelCheckpoint keep({.dirpath = folder.path(), .every_n_train_steps = 4});
  int made = 0;
  auto state = [&] { return ++made, numbered(made); };
  for (int i = 0; i < 9; ++i) keep.step(state);
  CHECK(made == 2);
}

TEST_CASE("a step whose metric is missing, or stale, waits for the validation", "[checkpoint][trigger]") {
  Folder folder;
  auto config = watching(folder, -1);
  config.every_n_train_steps = 2;
  config.filename = "{step}";
  ModelCheckpoint keep(config);
  keep.step(numbered(1)), keep.step(numbered(2));
  CHECK(names_in(folder).empty());
  CHECK(keep.update({{"val_loss", 5}}, numbered(2)));
  CHECK(names_in(folder) == Names{"step=2.safetensors"});
  CHECK_FALSE(keep.update({{"val_loss", 5}}, numbered(2)));  // the same step

  Metrics stale{{"val_loss", 5}};
  keep.step(stale, numbered(3));
  CHECK_FALSE(keep.step(stale, numbered(4), {.validation_next = true}));
  CHECK(keep.update({{"val_loss", 1}}, numbered(4)));
  CHECK(keep.best_model_score() == 1);
  keep.step(stale, numbered(5));
  CHECK(keep.step(stale, numbered(6)));
}

TEST_CASE("time triggers", "[checkpoint][trigger]") {
  Folder folder;
  ModelCheckpoint keep({.dirpath = folder.path(), .save_top_k = -1, .train_time_interval = 0.05});
  CHECK_FALSE(keep.step(numbered(1)));
  // However slow the disk is: no save comes early, and each comes.
  const auto begin = std::chrono::steady_clock::now();
  auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(); };
  int saved = 0;
  while (saved < 3 && elapsed() < 60) saved += keep.step(numbered(1));
  CHECK(saved == 3);
  CHECK(elapsed() >= 3 * 0.05 - 0.01);
  ModelCheckpoint always({.dirpath = folder / "always", .save_top_k = -1, .train_time_interval = 0});
  CHECK((always.step(numbered(1)) && always.step(numbered(2))));
}

TEST_CASE("the end of the training epoch saves where it is told to, or where nobody validates",
          "[checkpoint][trigger]") {
  Folder first, second, third;
  auto config = watching(first, -1);
  config.save_on_train_epoch_end = true;
  ModelCheckpoint at_end(config);
  CHECK_FALSE(at_end.update({{"val_loss", 1}}, numbered(1)));
  CHECK(at_end.train_epoch_end({{"val_loss", 1}}, numbered(1)));
  ModelCheckpoint alone({.dirpath = second.path()});
  CHECK(alone.train_epoch_end({}, numbered(1)));
  CHECK(alone.train_epoch_end({}, numbered(2)));
  CHECK(names_in(second) == Names{"epoch=1-step=2.safetensors"});
  ModelCheckpoint validating({.dirpath = third.path()});
  CHECK(validating.update({}, numbered(1)));
  CHECK_FALSE(validating.train_epoch_end({}, numbered(1)));
}

TEST_CASE("an exception leaves a checkpoint and goes on", "[checkpoint][exception]") {
  Folder folder;
  auto config = watching(folder);
  config.save_on_exception = true;
  config.save_last = true;
  ModelCheckpoint keep(config);
  double weight = 0;
  auto state = [&] { return numbered(weight); };
  auto body = [&] {
    run(keep, {1});
    keep.step(state, {.epoch = 1, .step = 7});
    weight = 42;
    throw std::out_of_range("in the loop");
  };
  CHECK_THROWS_AS(keep.guard(state, body), std::out_of_range);
  CHECK(names_in(folder) == Names{"epoch=0-step=1.safetensors", "epoch=1-step=7.safetensors", "last.safetensors"});
  CHECK(number_in(folder / "epoch=1-step=7.safetensors") == 42);
  CHECK(number_in(folder / "last.safetensors") == 42);
  CHECK(number_in(folder / "epoch=0-step=1.safetensors") == 1);
  CHECK(keep.best_model_score() == 1);

  CHECK_THROWS_AS(keep.guard(state, [] { throw 3; }), int);  // the same step: nothing more to save
  CHECK(names_in(folder).size() == 3);
  Folder unwanted;
  ModelCheckpoint without(watching(unwanted));
  CHECK_THROWS_AS(without.guard(state, [&] { without.step(state), throw std::out_of_range(""); }), std::out_of_range);
  CHECK(names_in(unwanted).empty());
  CHECK_NOTHROW(without.guard(state, [] {}));
}

TEST_CASE("a signal is answered at the next call", "[checkpoint][signal]") {
  Folder folder;
  auto config = watching(folder);
  config.save_on_signals = {"SIGUSR1", "TERM"};
  config.save_last = true;
  {
    ModelCheckpoint keep(config);
    CHECK_FALSE(keep.step(numbered(1)));
    raise(SIGTERM);
    CHECK_FALSE(keep.interrupted());
    CHECK(keep.step(numbered(2)));
    CHECK(keep.interrupted());
    CHECK(names_in(folder) == Names{"epoch=0-step=2.safetensors", "last.safetensors"});
    CHECK_FALSE(keep.step(numbered(3)));
    CHECK(keep.update({{"val_loss", 1}}, numbered(3)));
  }
  static bool before = false;
  signal(SIGUSR1, [](int) { before = true; });
  {
    ModelCheckpoint keep(config);
    raise(SIGUSR1);
    CHECK_FALSE(before);
    CHECK_FALSE(keep.interrupted());
    raise(SIGUSR1);  // the second time it does what it did before
    CHECK(before);
  }
  before = false;
  raise(SIGUSR1);
  CHECK(before);
  signal(SIGUSR1, SIG_DFL);
}

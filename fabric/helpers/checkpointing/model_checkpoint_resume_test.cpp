// Going on with the files of an earlier run, and files that others touch.
#include <fcntl.h>
#include <unistd.h>

#include <functional>
#include <limits>

#include <fabric/base/error.h>
#include <fabric/helpers/checkpointing/model_checkpoint.h>

#include "tests/support/checkpoints.h"

using namespace checkpoint_test;
using Catch::Matchers::Contains;

namespace {

/// What `work` writes to stderr.
std::string log_of(const std::function<void()>& work) {
  Folder folder;
  int before = dup(2), file = open((folder / "log").c_str(), O_CREAT | O_WRONLY, 0600);
  dup2(file, 2);
  work();
  dup2(before, 2);
  close(before), close(file);
  return read_file(folder / "log");
}

}  // namespace

TEST_CASE("a warning about the folder comes only when it is another one", "[checkpoint][resume][trace]") {
  Folder folder, other;
  ModelCheckpoint first(watching(folder, 2));
  run(first, {3, 2});
  auto load_into = [&](const std::filesystem::path& path) {
    ModelCheckpoint second({.dirpath = path, .monitor = "val_loss", .save_top_k = 2});
    return log_of([&] {
      second.load_state_dict(first.state_dict());
      second.update({{"val_loss", 1}}, numbered(1), {.epoch = 2});
    });
  };
  CHECK(load_into(folder.path()).empty());
  std::filesystem::create_directory_symlink(folder.path(), other / "same");
  CHECK_THAT(load_into(other / "same"), !Contains("dirpath"));
  CHECK_THAT(load_into(folder / "x" / ".."), !Contains("dirpath"));
  CHECK_THAT(load_into(other / "new"), Contains("dirpath is '" + (other / "new").string() + "' now"));
  // Without a state, files that are there already are worth a word.
  ModelCheckpoint fresh(watching(folder));
  CHECK_THAT(log_of([&] { run(fresh, {1}); }), Contains("holds checkpoints already"));
}

TEST_CASE("a resumed run goes on with the same files", "[checkpoint][resume]") {
  Folder folder;
  auto config = watching(folder, 2);
  config.save_last = true;
  ModelCheckpoint first(config);
  run(first, {3, 2, 4});
  ModelCheckpoint second(config);
  second.load_state_dict(first.state_dict());
  CHECK((second.best_k_models() == first.best_k_models()));
  CHECK(second.best_model_score() == 2);
  CHECK(second.kth_value() == 3);
  CHECK(second.last_model_path() == first.last_model_path());
  run(second, {2.5});
  CHECK(names_in(folder) == Names{"epoch=1-step=2.safetensors", "epoch=3-step=4.safetensors", "last.safetensors"});
}

TEST_CASE("in another folder, or for another metric, only two paths are taken over", "[checkpoint][resume]") {
  Folder folder, other;
  ModelCheckpoint first(watching(folder, 2));
  run(first, {3, 2});
  auto config = watching(other, 2);
  ModelCheckpoint moved(config);
  moved.load_state_dict(first.state_dict());
  CHECK(moved.best_k_models().empty());
  CHECK(moved.best_model_path() == first.best_model_path());
  CHECK_FALSE(moved.best_model_score());
  CHECK(moved.kth_value() == std::numeric_limits<double>::infinity());
  run(moved, {9});
  CHECK(moved.best_model_score() == 9);
  CHECK(names_in(folder).size() == 2);
  CHECK(names_in(other) == Names{"epoch=2-step=3.safetensors"});

  auto accuracy = watching(folder, 2);
  accuracy.monitor = "acc";
  ModelCheckpoint changed(accuracy);
  changed.load_state_dict(first.state_dict());
  CHECK(changed.best_k_models().empty());
  CHECK_THROWS_AS(changed.load_state_dict(fabric::Value::Map{{"x", 1}}), fabric::CheckpointKeyError);
  CHECK_THROWS_AS(changed.load_state_dict(3), fabric::CheckpointError);
}

TEST_CASE("with a smaller k the worst of a resumed run go at the next save", "[checkpoint][resume]") {
  Folder folder;
  ModelCheckpoint three(watching(folder, 3));
  run(three, {3, 2, 1});
  ModelCheckpoint one(watching(folder, 1));
  one.load_state_dict(three.state_dict());
  run(one, {0.5});
  CHECK(names_in(folder) == Names{"epoch=3-step=4.safetensors"});
}

TEST_CASE("a checkpoint that somebody removed no longer counts", "[checkpoint][bad]") {
  Folder folder;
  ModelCheckpoint keep(watching(folder, 2));
  run(keep, {1, 2});
  std::filesystem::remove(keep.best_model_path());
  run(keep, {5});
  CHECK(keep.best_model_score() == 2);
  CHECK(names_in(folder) == Names{"epoch=1-step=2.safetensors", "epoch=2-step=3.safetensors"});
  std::filesystem::remove_all(folder.path());
  run(keep, {7});
  CHECK(names_in(folder) == Names{"epoch=3-step=4.safetensors"});
}

TEST_CASE("files outside the folder, and protected ones, are never removed", "[checkpoint][guard]") {
  Folder folder;
  ModelCheckpoint keep(watching(folder));
  run(keep, {3});
  auto source = keep.best_model_path();
  keep.protect(source);
  run(keep, {2});
  CHECK(std::filesystem::exists(source));
  keep.release(source);
  CHECK_FALSE(std::filesystem::exists(source));
  run(keep, {1});
  CHECK(names_in(folder).size() == 1);
  keep.release(keep.best_model_path());  // was never protected
  CHECK(names_in(folder).size() == 1);

  Folder other;
  Value state = keep.state_dict();
  auto outside = other / "precious.safetensors";
  write_file(outside, "foreign");
  state["best_k_models"] = Value::Map{{outside.string(), 100.0}};
  keep.load_state_dict(state);
  run(keep, {0});
  CHECK(std::filesystem::exists(outside));
}

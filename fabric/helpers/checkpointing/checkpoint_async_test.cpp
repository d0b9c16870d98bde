#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>

#include <fabric/base/error.h>
#include <fabric/helpers/checkpointing/checkpoint_files_internal.h>
#include <fabric/helpers/checkpointing/model_checkpoint.h>

#include "tests/support/checkpoints.h"

using namespace checkpoint_test;
using Catch::Matchers::Contains;
using fabric::CheckpointError;

namespace {

using Milliseconds = std::chrono::milliseconds;

/// Writes like the default, but waits until it is told to, and fails when it is told to.
struct Slow {
  std::atomic<bool> go{false}, fail{false};
  std::atomic<int> written{0};
  ModelCheckpoint::SaveFunction function() {
    return [this](const std::filesystem::path& path, const Value& checkpoint) {
      while (!go) std::this_thread::sleep_for(Milliseconds(1));
      if (fail) throw CheckpointError("the disk is full");
      fabric::make_checkpoint_io()->save(checkpoint, path);
      ++written;
    };
  }
};

ModelCheckpoint::Config in_background(const Folder& folder, int k = 1) {
  return {.dirpath = folder.path(), .monitor = "val_loss", .save_top_k = k, .async = true};
}

struct Failures : fabric::CheckpointObserver {
  std::vector<std::filesystem::path> paths;
  void save_failed(const fabric::CheckpointEvent& event) override { paths.push_back(event.path); }
};

}  // namespace

TEST_CASE("the loop goes on while the file is written, which holds the state of the call", "[checkpoint][async]") {
  Folder folder;
  Slow slow;
  ModelCheckpoint keep(in_background(folder), slow.function());
  auto weight = torch::full({1000}, 1.0);
  CHECK(keep.update({{"val_loss", 3}}, {{"weight", weight}}));
  CHECK(slow.written == 0);
  weight.fill_(-1);
  CHECK_FALSE(keep.step(numbered(0)));
  CHECK(names_in(folder).empty());
  slow.go = true;
  keep.wait();
  CHECK(slow.written == 1);
  CHECK(number_in(keep.best_model_path()) == 1);
}

TEST_CASE("at most one file is in flight; the old one goes when the new one is whole", "[checkpoint][async]") {
  Folder folder;
  Slow slow;
  auto config = in_background(folder);
  config.save_last = true;
  ModelCheckpoint keep(config, slow.function());
  slow.go = true;
  run(keep, {3});
  keep.wait();
  slow.go = false;
  run(keep, {2});
  CHECK(names_in(folder) == Names{"epoch=0-step=1.safetensors", "last.safetensors"});
  std::thread later([&] {
    std::this_thread::sleep_for(Milliseconds(30));
    slow.go = true;
  });
  run(keep, {1});  // waits for the one before
  CHECK(slow.written >= 2);
  later.join();
  keep.finish(numbered(0));
  CHECK(slow.written == 3);
  CHECK(names_in(folder) == Names{"epoch=2-step=3.safetensors", "last.safetensors"});
  CHECK(number_in(folder / "last.safetensors") == 1);
}

TEST_CASE("a failed write is told at the next call and costs nothing", "[checkpoint][async][bad]") {
  Folder folder;
  Slow slow;
  slow.go = true;
  ModelCheckpoint keep(in_background(folder), slow.function());
  Failures failures;
  keep.add_observer(failures);
  run(keep, {3});
  keep.wait();
  auto before = keep.best_k_models();
  slow.fail = true;
  run(keep, {2});
  CHECK(keep.best_model_score() == 2);
  // Which call it is that learns of it depends on the thread; it is one of the next.
  std::string told;
  for (int i = 0; i < 2000 && told.empty(); ++i) {
    try {
      keep.step(numbered(0), {.step = 1});
      std::this_thread::sleep_for(Milliseconds(1));
    } catch (const CheckpointError& error) {
      told = error.what();
    }
  }
  CHECK_THAT(told, Contains("the disk is full") && Contains("epoch=1-step=2") && Contains("is lost"));
  CHECK(failures.paths.size() == 1);
  CHECK((keep.best_k_models() == before));
  CHECK(number_in(keep.best_model_path()) == 3);
  slow.fail = false;
  CHECK(keep.update({{"val_loss", 1}}, numbered(1), {.step = 3}));
  keep.wait();
  CHECK(keep.best_model_score() == 1);
  CHECK(names_in(folder).size() == 1);
  slow.fail = true;
  keep.update({{"val_loss", 0.5}}, numbered(1), {.step = 4});
  CHECK_THROWS_AS(keep.wait(), CheckpointError);
  CHECK_NOTHROW(keep.wait());
  keep.update({{"val_loss", 0.4}}, numbered(1),
              {.step = 5});  // lost, too, when the object ends; that only goes to the log
}

TEST_CASE("a failed write at once leaves everything as it was", "[checkpoint][bad]") {
  Folder folder;
  Slow slow;
  slow.go = true;
  auto config = in_background(folder);
  config.async = false;
  ModelCheckpoint keep(config, slow.function());
  Failures failures;
  keep.add_observer(failures);
  run(keep, {3});
  slow.fail = true;
  CHECK_THROWS_WITH(run(keep, {2}), Contains("the disk is full"));
  CHECK(keep.best_model_score() == 3);
  CHECK(failures.paths.size() == 1);
  slow.fail = false;
  CHECK(keep.update({{"val_loss", 2}}, numbered(2), {.epoch = 1}));  // the same step can be tried again
  CHECK(number_in(keep.best_model_path()) == 2);
  CHECK_THROWS_AS(keep.update({{"val_loss", 1}}, [&]() -> State { throw std::out_of_range("no state"); }),
                  std::out_of_range);
  CHECK(keep.best_model_score() == 2);
}

TEST_CASE("a full disk and a read-only folder cost no checkpoint", "[checkpoint][bad]") {
  for (bool async : {false, true}) {
    INFO("async " << async);
    Folder folder;
    SmallDisk disk(folder / "disk", "size=1m");
    if (!disk.ok) return;
    ModelCheckpoint keep({.dirpath = disk.path, .monitor = "val_loss", .save_last = true, .async = async});
    CHECK(keep.update({{"val_loss", 3}}, numbered(3, 1000)));
    auto fail = [&](double loss, std::int64_t size) {
      keep.update({{"val_loss", loss}}, numbered(loss, size));
      keep.wait();
    };
    CHECK_THROWS_WITH(fail(2, 1 << 20), Contains("No space left"));
    CHECK(number_in(keep.best_model_path()) == 3);
    CHECK(number_in(keep.last_model_path()) == 3);
    CHECK(names_in(disk.path) == Names{"epoch=0-step=1.safetensors", "last.safetensors"});
    fail(1, 1000);
    CHECK(number_in(keep.best_model_path()) == 1);
    CHECK(number_in(keep.last_model_path()) == 1);
    disk.make_read_only();
    CHECK_THROWS_WITH(fail(0, 1000), Contains("Read-only"));
    CHECK(number_in(keep.best_model_path()) == 1);
    keep.protect(keep.best_model_path());
  }
}

TEST_CASE("files get second names, whole at any moment", "[checkpoint][files]") {
  Folder folder;
  auto a = folder / "a", last = folder / "last";
  write_file(a, "one");
  fabric::copy_checkpoint(a, last);
  fabric::copy_checkpoint(a, last);  // two names of one file
  CHECK(names_in(folder) == Names{"a", "last"});
  CHECK(read_file(last) == "one");
  std::filesystem::remove(a);
  write_file(a, "two");
  CHECK(read_file(last) == "one");
  fabric::link_checkpoint(a, last);
  CHECK(std::filesystem::read_symlink(last) == "a");
  CHECK(read_file(last) == "two");
  fabric::link_checkpoint(a, folder / "below/last");
  CHECK(std::filesystem::read_symlink(folder / "below/last") == "../a");
  fabric::copy_checkpoint(a, last);
  CHECK_FALSE(std::filesystem::is_symlink(last));
  write_file(folder / ".last.partial-link", "a kill left it");
  fabric::copy_checkpoint(a, last);
  CHECK(names_in(folder) == Names{"a", "below", "last"});
  CHECK_THROWS_AS(fabric::copy_checkpoint(folder / "missing", last), CheckpointError);
  CHECK(read_file(last) == "two");
  CHECK(names_in(folder) == Names{"a", "below", "last"});
  std::filesystem::create_directory(folder / "sharded");
  write_file(folder / "sharded/part", "three");
  fabric::copy_checkpoint(folder / "sharded", folder / "copy");
  CHECK(read_file(folder / "copy/part") == "three");
  fabric::remove_checkpoint(folder / "sharded");
  write_file(folder / ".a.safetensors.partial", "half");
  write_file(folder / ".b.safetensors.partial", "at work");
  write_file(folder / ".c.txt.partial", "of somebody else");
  int held = open((folder / ".b.safetensors.partial").c_str(), O_WRONLY);
  REQUIRE(flock(held, LOCK_EX) == 0);
  fabric::remove_leftovers(folder.path(), ".safetensors");
  close(held);
  CHECK(names_in(folder) == Names{".b.safetensors.partial", ".c.txt.partial", "a", "below", "copy", "last"});
  CHECK_NOTHROW(fabric::remove_checkpoint(folder / "sharded"));
}

TEST_CASE("when last cannot be made the save failed as a whole", "[checkpoint][bad]") {
  Folder folder;
  ModelCheckpoint keep(
      {.dirpath = folder.path(), .monitor = "val_loss", .save_last = true, .last_filename = "sub/last"});
  run(keep, {3});
  auto before = names_in(folder);
  std::filesystem::remove_all(folder / "sub");
  write_file(folder / "sub", "a file where a folder should be");
  CHECK_THROWS_AS(run(keep, {2}), CheckpointError);
  CHECK(keep.best_model_score() == 3);
  CHECK(names_in(folder) == before);
  CHECK(number_in(keep.best_model_path()) == 3);
}

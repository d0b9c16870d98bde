#include <sys/stat.h>

#include <fabric/base/error.h>
#include <fabric/helpers/checkpointing/resume.h>

#include "tests/support/checkpoints.h"

using namespace checkpoint_test;
using Catch::Matchers::Contains;
using fabric::resume_latest;

namespace {

/// A whole checkpoint that seems to have been written `age` seconds ago.
void put(const std::filesystem::path& path, double number, int age) {
  fabric::make_checkpoint_io()->save(Value::Map{{"model", Value::Map{{"weight", at::full({50}, number)}}}}, path);
  auto time = std::filesystem::file_time_type::clock::now() - std::chrono::seconds(age);
  std::filesystem::last_write_time(path, time);
}

void age(const std::filesystem::path& path, int seconds) {
  std::filesystem::last_write_time(path, std::filesystem::file_time_type::clock::now() - std::chrono::seconds(seconds));
}

}  // namespace

TEST_CASE("a run without checkpoints starts anew", "[resume]") {
  Folder folder;
  CHECK_FALSE(resume_latest(folder / "missing"));
  CHECK_FALSE(resume_latest(folder.path()));
  write_file(folder / "notes.txt", "nothing");
  auto point = resume_latest(folder.path());
  CHECK((point.path.empty() && point.skipped.empty()));
}

TEST_CASE("the newest is found, in folders below, too", "[resume]") {
  Folder folder;
  put(folder / "epoch=1.safetensors", 1, 50);
  put(folder / "epoch=2.safetensors", 2, 40);
  put(folder / "below/epoch=0.safetensors", 3, 30);
  CHECK(resume_latest(folder.path()).path == folder / "below/epoch=0.safetensors");
  put(folder / "epoch=1.safetensors", 4, 20);  // written anew
  CHECK(resume_latest(folder.path()).path == folder / "epoch=1.safetensors");
}

TEST_CASE("a folder that was copied goes on from where the run had come to", "[resume]") {
  Folder folder, copy;
  for (int epoch = 0; epoch < 11; ++epoch)
    fabric::make_checkpoint_io()->save(
        Value::Map{{"model", torch::ones(3)}, {"epoch", epoch}, {"step", 10 * (epoch + 1)}},
        folder / ("epoch=" + std::to_string(epoch) + ".safetensors"));
  // As `cp *` does: in the order of the names, in which 9 is the last.
  int age_of_copy = 100;
  for (const auto& name : names_in(folder)) {
    std::filesystem::copy_file(folder / name, copy / name);
    age(copy / name, age_of_copy--);
  }
  CHECK(resume_latest(copy.path()).path == copy / "epoch=10.safetensors");

  // The same of the state that a ModelCheckpoint adds, and of files that Lightning wrote.
  Folder kept;
  ModelCheckpoint keep({.dirpath = kept.path(), .save_top_k = -1});
  for (int i = 0; i < 3; ++i) keep.update({}, State{{"weight", torch::ones(2)}, {"keep", keep}});
  age(kept / "epoch=2-step=3.safetensors", 1000);
  CHECK(resume_latest(kept.path()).path == kept / "epoch=2-step=3.safetensors");
  fabric::make_checkpoint_io("torch")->save(Value::Map{{"global_step", 7}, {"epoch", 5}}, kept / "last.ckpt");
  age(kept / "last.ckpt", 2000);
  CHECK(resume_latest(kept.path()).path == kept / "last.ckpt");

  // Newer, but damaged: how far it is, nobody knows.
  write_file(kept / "newest.safetensors", "damaged");
  auto point = resume_latest(kept.path());
  CHECK(point.path == kept / "last.ckpt");
  REQUIRE(point.skipped.size() == 1);
  CHECK(point.skipped[0].path == kept / "newest.safetensors");
}

TEST_CASE("of files as old the numbers in the names decide", "[resume]") {
  Folder folder;
  auto time = std::filesystem::file_time_type::clock::now();
  for (std::string name : {"epoch=9-step=90", "epoch=10-step=100", "epoch=10-step=99", "a"}) {
    put(folder / (name + ".safetensors"), 1, 0);
    std::filesystem::last_write_time(folder / (name + ".safetensors"), time);
  }
  CHECK(resume_latest(folder.path()).path == folder / "epoch=10-step=100.safetensors");
}

TEST_CASE("what is damaged or half written is passed over, and said", "[resume]") {
  Folder folder;
  put(folder / "whole.safetensors", 1, 100);
  auto damaged = [&](const std::string& name, auto&& change, int seconds) {
    put(folder / name, 2, 0);
    std::string bytes = read_file(folder / name);
    change(bytes);
    write_file(folder / name, bytes);
    age(folder / name, seconds);
  };
  damaged(
      "truncated.safetensors", [](auto& bytes) { bytes.resize(bytes.size() - 4); }, 10);
  damaged(
      "header.safetensors", [](auto& bytes) { bytes[8] = '!'; }, 20);
  damaged(
      "longer.safetensors", [](auto& bytes) { bytes += "x"; }, 30);
  damaged(
      "empty.safetensors", [](auto& bytes) { bytes.clear(); }, 40);
  damaged(
      "zeros.pt", [](auto& bytes) { std::fill(bytes.begin(), bytes.end(), '\0'); }, 50);
  write_file(folder / ".epoch=7.safetensors.partial", "half");
  age(folder / ".epoch=7.safetensors.partial", 5);
  std::filesystem::create_symlink("gone.safetensors", folder / "last.safetensors");
  mkfifo((folder / "pipe.ckpt").c_str(), 0600);

  auto point = resume_latest(folder.path());
  CHECK(point.path == folder / "whole.safetensors");
  REQUIRE(point.skipped.size() == 8);
  std::map<std::string, std::string> reasons;
  for (const auto& [path, reason] : point.skipped) reasons[path.filename()] = reason;
  CHECK_THAT(reasons["truncated.safetensors"], Contains("truncated"));
  CHECK_THAT(reasons["empty.safetensors"], Contains("empty"));
  CHECK_THAT(reasons[".epoch=7.safetensors.partial"], Contains("interrupted"));
  CHECK_THAT(reasons["last.safetensors"], Contains("gone.safetensors"));
  CHECK_THAT(reasons["pipe.ckpt"], Contains("regular"));

  std::filesystem::remove(folder / "whole.safetensors");
  point = resume_latest(folder.path());
  CHECK_FALSE(point);
  CHECK(point.skipped.size() == 8);
}

TEST_CASE("two names of one file count once, and a link gives way to what it names", "[resume]") {
  Folder folder;
  put(folder / "epoch=3.safetensors", 1, 5);
  std::filesystem::create_symlink("epoch=3.safetensors", folder / "last.safetensors");
  CHECK(resume_latest(folder.path()).path == folder / "epoch=3.safetensors");
  put(folder / "zzz.safetensors", 1, 1);
  write_file(folder / "zzz.safetensors", "damaged");
  std::filesystem::create_hard_link(folder / "zzz.safetensors", folder / "last-v1.safetensors");
  auto point = resume_latest(folder.path());
  CHECK(point.path == folder / "epoch=3.safetensors");
  CHECK(point.skipped.size() == 1);
}

TEST_CASE("files of another kind are passed over", "[resume]") {
  Folder folder;
  put(folder / "run.safetensors", 1, 50);
  fabric::make_checkpoint_io()->save(Value::Map{{"weights", torch::ones(2)}}, folder / "export.safetensors");
  auto point = resume_latest(folder.path(), fabric::Peers(), {"model"});
  CHECK(point.path == folder / "run.safetensors");
  REQUIRE(point.skipped.size() == 1);
  CHECK(point.skipped[0].reason == "it has no 'model'");
  CHECK(resume_latest(folder.path()).path == folder / "export.safetensors");
}

TEST_CASE("a folder that is none is an error", "[resume]") {
  Folder folder;
  write_file(folder / "file", "x");
  CHECK_THROWS_AS(resume_latest(folder / "file"), fabric::CheckpointError);
  CHECK_THROWS_AS(resume_latest("s3://bucket/run"), fabric::ConfigError);
}

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <torch/torch.h>

#include <chrono>
#include <random>
#include <thread>

#include <fabric/base/error.h>
#include <fabric/plugins/checkpoint_io/checkpoint_io.h>

#include "fabric/base/atomic_file_test_support.h"
#include "plugins/checkpoint_io/test_files.h"
#include "tests/support/catch.h"

using namespace fabric;
using Catch::Matchers::Contains;
using checkpoint_test::Folder;
using checkpoint_test::read_file;
using checkpoint_test::same;
using checkpoint_test::write_file;

namespace {

Value small() { return Value::Map{{"epoch", 1}, {"w", torch::ones(10)}}; }
Value large() { return Value::Map{{"epoch", 2}, {"w", torch::ones({1 << 20})}}; }

/// A file system of its own; needs the right to mount, otherwise `ok` is false.
struct Mount {
  Mount(const std::filesystem::path& path, const char* options) : path(path) {
    std::filesystem::create_directory(path);
    ok = mount("tmpfs", path.c_str(), "tmpfs", 0, options) == 0;
    if (!ok) WARN("skipped: mounting a small file system needs more rights");
  }
  ~Mount() {
    if (ok) umount2(path.c_str(), MNT_DETACH);
  }
  std::filesystem::path path;
  bool ok;
};

/// For as long as it lives this process has no more rights than anybody; `ok` is false where it cannot give them up.
struct OrdinaryUser {
  OrdinaryUser() : before(geteuid()) {
    ok = before != 0 || seteuid(65534) == 0;
    if (!ok) WARN("skipped: root writes everywhere, and may not become another user here");
  }
  ~OrdinaryUser() { [[maybe_unused]] int ignored = seteuid(before); }
  uid_t before;
  bool ok;
};

}  // namespace

TEST_CASE("a write that fails half way leaves the old file and nothing else", "[checkpoint_io][durability]") {
  for (std::string format : {"safetensors", "torch"}) {
    Folder folder;
    auto io = make_checkpoint_io(format);
    io->save(small(), folder / "f");
    {
      FileSizeLimit limit(100'000);
      CHECK_THROWS_WITH(io->save(large(), folder / "f"),
                        Contains((folder / "f").string()) && Contains("File too large"));
      CHECK_THROWS_AS(io->save(large(), folder / "g"), CheckpointError);
    }
    CHECK(folder.names() == std::vector<std::string>{"f"});
    CHECK(same(io->load(folder / "f"), small()));
    io->save(large(), folder / "f");
    CHECK(same(io->load(folder / "f"), large()));
  }
}

TEST_CASE("pieces of all sizes are written in their order", "[checkpoint_io][durability]") {
  constexpr std::int64_t kMebi = 1 << 20;
  Folder folder;
  for (std::string format : {"safetensors", "torch"}) {
    auto io = make_checkpoint_io(format);
    for (std::int64_t bytes :
         {1L, kMebi / 2 - 1, kMebi / 2, kMebi / 2 + 1, kMebi - 20'000, kMebi - 1, kMebi, kMebi + 1}) {
      INFO(format << ", " << bytes);
      Value value = Value::Map{{"small", torch::arange(100)},
                               {"one", torch::randint(0, 256, {bytes}, torch::kByte)},
                               {"two", torch::randint(0, 256, {bytes}, torch::kByte)}};
      io->save(value, folder / "f");
      CHECK(same(io->load(folder / "f"), value));
    }
  }
}

TEST_CASE("a full disk leaves the old file and nothing else", "[checkpoint_io][durability]") {
  for (const char* format : {"safetensors", "sharded"}) {
    Folder folder;
    Mount disk(folder / "disk", "size=1m");
    if (!disk.ok) return;
    auto io = make_checkpoint_io(format);
    io->save(small(), disk.path / "f");
    CHECK_THROWS_WITH(io->save(large(), disk.path / "f"), Contains("No space left"));
    CHECK_THROWS_AS(io->save(large(), disk.path / "f"), CheckpointError);
    CHECK(same(io->load(disk.path / "f"), small()));
    CHECK(std::distance(std::filesystem::directory_iterator(disk.path), {}) == 1);
  }
}

TEST_CASE("a read-only folder is an error that names it", "[checkpoint_io][durability]") {
  for (const char* format : {"safetensors", "sharded"}) {
    Folder folder;
    Mount disk(folder / "disk", "size=1m");
    if (!disk.ok) return;
    auto io = make_checkpoint_io(format);
    io->save(small(), disk.path / "f");
    REQUIRE(mount(nullptr, disk.path.c_str(), nullptr, MS_REMOUNT | MS_RDONLY, nullptr) == 0);
    CHECK_THROWS_WITH(io->save(large(), disk.path / "f"), Contains("Read-only") && Contains("disk/"));
    CHECK_THROWS_AS(io->save(large(), disk.path / "new/f"), CheckpointError);
    CHECK_THROWS_AS(io->remove(disk.path / "f"), CheckpointError);
    CHECK(same(io->load(disk.path / "f"), small()));
  }
}

TEST_CASE("a folder without the right to write is an error that names it", "[checkpoint_io][durability]") {
  for (const char* format : {"safetensors", "sharded"}) {
    Folder folder;
    auto io = make_checkpoint_io(format);
    io->save(small(), folder / "locked/f");
    chmod(folder.path().c_str(), 0755);
    if (std::filesystem::is_regular_file(folder / "locked/f")) chmod((folder / "locked/f").c_str(), 0644);
    chmod((folder / "locked").c_str(), 0555);
    {
      OrdinaryUser user;
      if (user.ok) {
        CHECK_THROWS_WITH(io->save(large(), folder / "locked/f"), Contains("Permission denied") && Contains("locked/"));
        CHECK_THROWS_AS(io->save(large(), folder / "locked/new/f"), CheckpointError);
        CHECK_THROWS_AS(io->remove(folder / "locked/f"), CheckpointError);
        CHECK(same(io->load(folder / "locked/f"), small()));
      }
    }
    chmod((folder / "locked").c_str(), 0755);  // so that it can be removed
    CHECK(same(io->load(folder / "locked/f"), small()));
  }
}

TEST_CASE("paths that cannot be written are errors", "[checkpoint_io][durability]") {
  Folder folder;
  auto io = make_checkpoint_io();
  io->save(small(), folder / "a/b/f");
  CHECK_THROWS_WITH(io->save(small(), folder / "a/b/f/g"), Contains("a/b/f/g"));
  CHECK_THROWS_WITH(io->save(small(), folder / "a"), Contains("is a folder"));
  CHECK_THROWS_AS(io->save(small(), ""), CheckpointError);
  CHECK_THROWS_AS(io->save(small(), folder / (std::string(300, 'x'))), CheckpointError);
  REQUIRE(mkfifo((folder / "pipe").c_str(), 0600) == 0);
  CHECK_THROWS_WITH(io->save(small(), folder / "pipe"), Contains("a pipe that nobody reads"));
  CHECK_THROWS_WITH(io->load(folder / "pipe"), Contains("not a regular file"));
  CHECK(same(io->load(folder / "a/b/f"), small()));
}

TEST_CASE("saving through a link writes the file that the link names", "[checkpoint_io][durability]") {
  Folder folder;
  auto io = make_checkpoint_io();
  io->save(small(), folder / "real/f");
  std::filesystem::create_symlink("real/f", folder / "link");
  io->save(large(), folder / "link");
  CHECK(std::filesystem::is_symlink(folder / "link"));
  CHECK(same(io->load(folder / "real/f"), large()));
}

TEST_CASE("what a killed save left is taken over; what a running one holds is not", "[checkpoint_io][durability]") {
  Folder folder;
  auto io = make_checkpoint_io();
  write_file(folder / ".f.partial", std::string(5'000'000, 'x'));
  io->save(small(), folder / "f");
  CHECK(folder.names() == std::vector<std::string>{"f"});
  CHECK(same(io->load(folder / "f"), small()));

  write_file(folder / ".f.partial", "half");
  int other = open((folder / ".f.partial").c_str(), O_WRONLY);
  REQUIRE(flock(other, LOCK_EX) == 0);
  io->save(large(), folder / "f");
  CHECK(read_file(folder / ".f.partial") == "half");
  CHECK(same(io->load(folder / "f"), large()));
  close(other);
}

TEST_CASE("a kill at any moment leaves a file that loads", "[checkpoint_io][durability]") {
  Folder folder;
  auto io = make_checkpoint_io();
  Value values[] = {large(), Value::Map{{"epoch", 3}, {"w", torch::zeros({1 << 19})}}};
  io->save(values[0], folder / "f");
  std::mt19937 random(7);
  for (int round = 0; round < 30; ++round) {
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      for (int i = 0;; ++i) io->save(values[i % 2], folder / "f");
    }
    std::this_thread::sleep_for(std::chrono::microseconds(500 + random() % 30'000));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    Value loaded = io->load(folder / "f");
    CHECK((same(loaded, values[0]) || same(loaded, values[1])));
    CHECK(folder.names().size() <= 2);
  }
}

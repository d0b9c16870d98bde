// Ranks that save in parts are killed at random moments of a save, one of them or all: the last checkpoint, or the one
// before, loads whole.
#include <chrono>
#include <fstream>
#include <iostream>
#include <random>

#include <torch/torch.h>

#include <fabric/base/log.h>
#include <fabric/fabric.h>

#include "plugins/checkpoint_io/test_files.h"
#include "tests/support/killed_life.h"

namespace {

namespace fs = std::filesystem;
using checkpoint_test::Folder;

constexpr int kSavers = 2;

/// Saves one state after another under one name, each with its number in every element, and notes which are done.
void save_again_and_again(const fs::path& folder, bool async) {
  at::set_num_threads(1);
  fabric::log::set_level(fabric::log::Level::off);
  fabric::Fabric fabric({.accelerator = "cpu", .strategy = "ddp", .devices = kSavers, .checkpoint_io = "sharded"});
  fabric.launch();
  std::ofstream done(folder / "done");
  std::shared_ptr<fabric::SaveInProgress> saving;
  for (std::int64_t number = 1; number < 1'000'000; ++number) {
    fabric::Value::Map tensors;
    for (int i = 0; i < 6; ++i)
      tensors.append("t" + std::to_string(i), torch::full({1 << 14}, static_cast<double>(number)));
    fabric::State state{{"model", fabric::Value(tensors)}, {"number", number}, {"own", fabric::PerRank(number)}};
    saving = fabric.save(folder / "c", state, {.async = async});
    // An asynchronous one is done when the next begins.
    if (fabric.is_global_zero()) done << (async ? number - 1 : number) << std::endl;
  }
}

std::int64_t last_number_in(const fs::path& file) {
  std::int64_t number = 0;
  std::ifstream in(file);
  for (std::int64_t next; in >> next;) number = next;
  return number;
}

/// The number of the checkpoint that is there, all of which is of one save; 0 for none.
std::int64_t whole_number_in(const fs::path& path) {
  if (!fs::exists(path) && !fs::exists(path.parent_path() / ".c.replaced")) return 0;
  auto loaded = fabric::make_checkpoint_io("sharded")->load(path);
  const auto number = loaded.at("number").as_int();
  RANK_CHECK(loaded.at("model").as_map().size() == 6);
  for (const auto& [name, tensor] : loaded.at("model").as_map())
    RANK_CHECK(tensor.as<at::Tensor>().eq(static_cast<double>(number)).all().item<bool>());
  for (const auto& own : loaded.at("own").at("per_rank").as_list()) RANK_CHECK(own.as_int() == number);
  return number;
}

// A rank that is killed before the ranks have met keeps the others waiting, as a launcher knows and they cannot.
void wait_for_first_save(const fs::path& folder) {
  for (int i = 0; i < 6000 && last_number_in(folder / "done") == 0; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
}

void kill_saves(int count, bool async, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<int> moment(0, 150'000);
  int killed = 0, left = 0;
  for (int i = 0; i < count; ++i) {
    Folder folder;
    Life ranks(kSavers, [&] { save_again_and_again(folder.path(), async); });
    wait_for_first_save(folder.path());
    const auto time = std::chrono::microseconds(moment(random));
    killed += i % 2 == 0 ? ranks.kill_after(time) : ranks.kill_one_after(time, i / 2 % kSavers);
    const auto promised = last_number_in(folder / "done"), found = whole_number_in(folder / "c");
    RANK_CHECK(found > 0);
    RANK_CHECK(found >= promised);
    left += fs::exists(folder / ".c.partial");
  }
  std::cout << killed << " saves killed, " << left << " left a part of the next" << std::endl;
  RANK_CHECK(killed == count);
}

void require_saves(const std::string& body) {
  auto outcome = ranks::run(body, {.world_size = 1, .timeout_seconds = 200}).at(0);
  INFO(outcome.output);
  CHECK(outcome.exit_code == 0);
  std::cout << body << ": " << outcome.output;
}

}  // namespace

RANKS_BODY("saves in parts killed at random moments") { kill_saves(50, false, 11); }
RANKS_BODY("saves in parts killed at random moments, beside the training") { kill_saves(50, true, 12); }

TEST_CASE("ranks that save in parts, killed 50 times, leave the last checkpoint or the one before", "[kill][ranks]") {
  require_saves("saves in parts killed at random moments");
}
TEST_CASE("the same 50 times with parts that are written beside the training", "[kill][ranks]") {
  require_saves("saves in parts killed at random moments, beside the training");
}

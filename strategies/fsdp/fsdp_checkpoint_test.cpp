// What is saved by some ranks goes on with others: as one file or in parts, under fsdp, ddp or alone.
#include <unistd.h>

#include <cstdlib>

#include "strategies/fsdp/fsdp_test_support.h"

using namespace fsdp_test;
using fabric::Tree;

namespace {

std::filesystem::path folder() { return std::getenv("FSDP_TEST_FOLDER"); }

void save_at(int step, Fabric& fabric, const char* name) {
  auto raw = make_text();
  auto [model, optimizer] = fabric.setup(raw, adamw);
  Training().run(fabric, model, optimizer, 0, step);
  fabric.save(folder() / name, {{"model", model}, {"optimizer", optimizer}, {"step", step}});
  // Saving changes nothing, and training goes on.
  Training().run(fabric, model, optimizer, step, step + 1);
}

// From step 3 to step 6; the result is one process's.
void go_on(Fabric& fabric, const char* name, const Whole& expected) {
  auto raw = make_text();
  torch::nn::init::zeros_(raw->scale);
  auto [model, optimizer] = fabric.setup(raw, adamw);
  fabric::State state{{"model", model}, {"optimizer", optimizer}, {"step", 0}};
  fabric.load(folder() / name, state);
  if (state.at("step").value()->as_int() != 3) throw std::runtime_error(std::string(name) + ": another step");
  Training().run(fabric, model, optimizer, 3, 6);
  double most = difference(model, expected.parameters);
  if (!(most < 1e-12))
    throw std::runtime_error(std::string(name) + ": differs by " + std::to_string(most * 1e12) + "e-12");
}

}  // namespace

RANKS_BODY("fsdp saves") {
  at::set_num_threads(1);
  for (const char* io : {"safetensors", "sharded"}) {
    Fabric fabric(settings(world_size, Tree::Map{}, "32-true", io));
    fabric.launch();
    save_at(3, fabric, io);
  }
  Fabric fabric({.accelerator = "cpu", .strategy = "ddp_find_unused_parameters_true", .devices = world_size});
  fabric.launch();
  save_at(3, fabric, "ddp");
}

RANKS_BODY("fsdp goes on") {
  at::set_num_threads(1);
  auto expected = alone(6);
  for (const char* name : {"safetensors", "sharded", "ddp"}) {
    for (const char* sharding : {"FULL_SHARD", "NO_SHARD"}) {
      Fabric fabric(settings(world_size, Tree::Map{{"sharding_strategy", sharding}}));
      fabric.launch();
      go_on(fabric, name, expected);
    }
  }
  Fabric fabric({.accelerator = "cpu", .strategy = "ddp_find_unused_parameters_true", .devices = world_size});
  fabric.launch();
  go_on(fabric, "sharded", expected);
  // What does not fit is refused on all ranks.
  Fabric other(settings(world_size));
  other.launch();
  auto model = other.setup(torch::nn::Linear(2, 2));
  fabric::State misfit{{"model", model}};
  RANK_CHECK(has(error_of([&] { other.load(folder() / "sharded", misfit); }), "weight"));
  // A part of a model that only one rank would write.
  RANK_CHECK(has(error_of([&] { other.strategy()->save_checkpoint(folder() / "alone", misfit, {.alone = true}); }),
                 "spread over ranks"));
}

TEST_CASE("what fsdp saves with two ranks goes on with three and with one, and what ddp saves with fsdp",
          "[fsdp][checkpoint]") {
  at::set_num_threads(1);
  auto path = std::filesystem::temp_directory_path() / ("fabric_fsdp_" + std::to_string(getpid()));
  std::filesystem::create_directories(path);
  setenv("FSDP_TEST_FOLDER", path.c_str(), 1);
  std::map<std::string, std::string> env{{"FSDP_TEST_FOLDER", path.string()}};
  ranks::run_and_require("fsdp saves", {.world_size = 2, .env = env});
  ranks::run_and_require("fsdp goes on", {.world_size = 3, .env = env});
  auto expected = alone(6);
  for (const char* name : {"safetensors", "sharded"}) {
    Fabric single({.accelerator = "cpu", .strategy = "single_device"});
    CHECK_NOTHROW(go_on(single, name, expected));
    Fabric one(settings(1));
    one.launch();
    CHECK_NOTHROW(go_on(one, name, expected));
  }
  std::filesystem::remove_all(path);
}

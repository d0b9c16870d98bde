// Fifty steps of every mode and type against one process on the joined batch, with the ways to accumulate and to clip
// in turn, others for each rank count; FABRIC_TEST_ALL=1 runs each combination with all of them.
#include <unistd.h>

#include <cstdlib>

#include "strategies/fsdp/fsdp_test_support.h"

using namespace fsdp_test;
using fabric::Tree;

namespace {

constexpr int kSteps = 50;
const auto slow_adamw = [](auto parameters) { return torch::optim::AdamW(parameters, 1e-3); };

struct Way {
  const char* name;
  Training training;
};

std::vector<Way> ways() {
  std::vector<Way> all;
  for (auto [parts, locally, how] :
       {std::tuple{1, false, "one batch"}, {2, false, "pieces accumulated"}, {2, true, "accumulated on each rank"}}) {
    all.push_back({how, {.parts = parts, .accumulate_locally = locally, .max_norm = {}}});
    all.push_back({how, {.parts = parts, .accumulate_locally = locally, .max_norm = 0.5}});
    all.push_back({how, {.parts = parts, .accumulate_locally = locally, .max_norm = {}, .clip_val = 0.01}});
  }
  return all;
}

// Of one process, by type and way; made when it is first asked for.
const std::vector<at::Tensor>& alone_after(at::ScalarType type, std::size_t way) {
  static std::map<std::pair<at::ScalarType, std::size_t>, std::vector<at::Tensor>> known;
  auto [found, is_new] = known.try_emplace({type, way});
  if (!is_new) return found->second;
  Fabric fabric({.accelerator = "cpu", .strategy = "single_device"});
  auto raw = make_text(5, type);
  auto [model, optimizer] = fabric.setup(raw, slow_adamw);
  ways()[way].training.run(fabric, model, optimizer, 0, kSteps);
  for (auto& parameter : raw->parameters()) found->second.push_back(parameter.detach().clone());
  return found->second;
}

void check_table(int world) {
  at::set_num_threads(1);
  const bool all = std::getenv("FABRIC_TEST_ALL") != nullptr;
  std::vector<Tree::Map> modes;
  for (const char* mode : {"FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD"})
    modes.push_back(Tree::Map{{"sharding_strategy", mode}, {"forward_prefetch", true}});
  if (world == 4)
    for (const char* mode : {"HYBRID_SHARD", "_HYBRID_SHARD_ZERO2"})
      modes.push_back(Tree::Map{{"sharding_strategy", mode}, {"device_mesh", Tree::List{2, 2}}});
  std::size_t number = 0;
  for (const auto& mode : modes) {
    Fabric fabric(settings(world, mode));
    fabric.launch();
    for (auto type : {at::kDouble, at::kFloat})
      for (std::size_t way = 0; way < ways().size(); ++way) {
        const bool here =
            (number + number / ways().size()) % ways().size() == 2 * static_cast<std::size_t>(world) % ways().size();
        ++number;
        if (!all && !here) continue;
        auto raw = make_text(5, type);
        auto [model, optimizer] = fabric.setup(raw, slow_adamw);
        ways()[way].training.run(fabric, model, optimizer, 0, kSteps);
        const double most = difference(model, alone_after(type, way));
        if (!(most < (type == at::kDouble ? 1e-12 : 1e-5)))
          throw std::runtime_error(mode.at("sharding_strategy").as_string() + ", " + c10::toString(type) + ", " +
                                   ways()[way].name + " (" + std::to_string(way) + "): parameters differ from one " +
                                   "process's by " + std::to_string(most * 1e6) + "e-6");
      }
  }
}

}  // namespace

RANKS_TEST("fsdp's modes over two ranks, fifty steps", "[fsdp][parity]", 2) { check_table(2); }
RANKS_TEST("fsdp's modes over three ranks, fifty steps", "[fsdp][parity]", 3) { check_table(3); }
RANKS_TEST("fsdp's modes over four ranks, fifty steps", "[fsdp][parity]", 4) { check_table(4); }

namespace {

// Steps of one life of a run; the loss over all ranks of each.
std::vector<double> live(Fabric& fabric, const std::filesystem::path& path, int first, int last) {
  auto raw = make_text();
  auto [model, optimizer] = fabric.setup(raw, adamw);
  fabric::State state{{"model", model}, {"optimizer", optimizer}};
  if (first > 0) fabric.load(path, state);
  std::vector<double> losses;
  for (int step = first; step < last; ++step) {
    auto ids = batch(step, 0, fabric.global_rank(), fabric.world_size());
    optimizer.zero_grad();
    auto loss = loss_of(model(ids), ids);
    fabric.backward(loss);
    fabric.clip_gradients(model, optimizer, {.max_norm = 0.5});
    optimizer.step();
    losses.push_back(fabric.all_reduce(loss.detach()).template item<double>());
  }
  if (!path.empty()) fabric.save(path, state);
  return losses;
}

void live_as_one_process(int world, int first, int last) {
  at::set_num_threads(1);
  Fabric fabric(settings(world, Tree::Map{}, "32-true", std::getenv("FSDP_TEST_IO")));
  fabric.launch();
  auto losses = live(fabric, std::getenv("FSDP_TEST_FOLDER"), first, last);
  Fabric single({.accelerator = "cpu", .strategy = "single_device"});
  auto expected = live(single, {}, 0, last);
  for (int step = first; step < last; ++step)
    RANK_CHECK(std::abs(losses[static_cast<std::size_t>(step - first)] - expected[static_cast<std::size_t>(step)]) <
               1e-12);
}

}  // namespace

RANKS_BODY("fsdp: four ranks begin") { live_as_one_process(world_size, 0, 4); }
RANKS_BODY("fsdp: two ranks go on") { live_as_one_process(world_size, 4, 8); }
RANKS_BODY("fsdp: three ranks end") { live_as_one_process(world_size, 8, 12); }

TEST_CASE("four ranks, then two, then three have the losses of one process", "[fsdp][parity][checkpoint]") {
  auto path = std::filesystem::temp_directory_path() / ("fabric_fsdp_lives_" + std::to_string(getpid()));
  for (const char* io : {"safetensors", "sharded"}) {
    std::map<std::string, std::string> env{{"FSDP_TEST_FOLDER", path.string()}, {"FSDP_TEST_IO", io}};
    ranks::run_and_require("fsdp: four ranks begin", {.world_size = 4, .env = env});
    ranks::run_and_require("fsdp: two ranks go on", {.world_size = 2, .env = env});
    ranks::run_and_require("fsdp: three ranks end", {.world_size = 3, .env = env});
    std::filesystem::remove_all(path);
  }
}

// The files, paths and scores after each epoch of scripted runs, as Lightning's ModelCheckpoint had them
// (tests/parity/record_model_checkpoint.py).
#include <fstream>

#include <fabric/base/tree_io.h>
#include <fabric/helpers/checkpointing/model_checkpoint.h>

#include "tests/support/checkpoints.h"

using namespace checkpoint_test;
using fabric::Tree;

namespace {

std::string base(const std::filesystem::path& path) { return path.filename().string(); }

void check_equal(const std::optional<double>& ours, const Tree& theirs) {
  REQUIRE(ours.has_value() == !theirs.is_null());
  if (ours) CHECK(*ours == Approx(theirs.as_double()).margin(1e-7));
}

ModelCheckpoint::Config config_of(const Tree& scenario, const Folder& folder) {
  ModelCheckpoint::Config config;
  fabric::detail::Codec<ModelCheckpoint::Config>::update(config, scenario.at("config"), "config");
  config.dirpath = folder.path();
  config.extension = ".ckpt";
  return config;
}

void check_epoch(const ModelCheckpoint& keep, const Folder& folder, const Tree& expected) {
  Names files;
  for (const auto& name : expected.at("files").as_list()) files.push_back(name.as_string());
  CHECK(names_in(folder) == files);
  CHECK(base(keep.best_model_path()) == expected.at("best_model_path").as_string());
  CHECK(base(keep.kth_best_model_path()) == expected.at("kth_best_model_path").as_string());
  CHECK(base(keep.last_model_path()) == expected.at("last_model_path").as_string());
  check_equal(keep.best_model_score(), expected.at("best_model_score"));
  check_equal(keep.current_score(), expected.at("current_score"));
  check_equal(keep.kth_value(), expected.at("kth_value"));
  std::map<std::string, double> ours, theirs;
  for (const auto& known : keep.best_k_models()) ours[base(known.path)] = known.score;
  for (const auto& [path, score] : expected.at("best_k_models").as_map()) theirs[path] = score.as_double();
  REQUIRE(ours.size() == theirs.size());
  for (const auto& [path, score] : theirs) CHECK(ours.at(path) == Approx(score).margin(1e-7));
}

void check_scenario(const Tree& scenario, std::int64_t batches) {
  Folder folder;
  if (const Tree* there = scenario.find("there"))
    for (const auto& name : there->as_list()) write_file(folder / name.as_string(), "");
  ModelCheckpoint keep(config_of(scenario, folder));
  Metrics metrics;
  const auto& losses = scenario.at("losses").as_list();
  for (std::size_t epoch = 0; epoch < losses.size(); ++epoch) {
    INFO("epoch " << epoch);
    auto e = static_cast<std::int64_t>(epoch);
    for (std::int64_t batch = 1; batch <= batches; ++batch) keep.step(metrics, numbered(1), {.epoch = e});
    metrics["val_loss"] = losses[epoch].as_double();
    keep.update(metrics, numbered(losses[epoch].as_double()), {.epoch = e});
    if (epoch + 1 == losses.size()) keep.finish(numbered(1), metrics);
    check_epoch(keep, folder, scenario.at("epochs").as_list()[epoch]);
  }
}

}  // namespace

TEST_CASE("the same files as Lightning keeps", "[checkpoint][parity]") {
  Tree recorded = fabric::read_tree_file(FABRIC_PARITY_DATA "/model_checkpoint.json");
  std::size_t count = 0;
  for (const auto& scenario : recorded.at("scenarios").as_list()) {
    const auto& name = scenario.at("name").as_string();
    INFO(name);
    check_scenario(scenario, recorded.at("batches").as_int());
    ++count;
  }
  CHECK(count == 22);
}

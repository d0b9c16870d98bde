#include <cmath>
#include <fstream>
#include <limits>

#include <fabric/base/error.h>
#include <fabric/base/tree_io.h>
#include <fabric/fabric.h>
#include <fabric/helpers/checkpointing/model_checkpoint.h>

#include "tests/support/checkpoints.h"

using namespace checkpoint_test;
using Catch::Matchers::Contains;
using fabric::CheckpointEvent;
using fabric::ConfigError;
using fabric::SaveLast;

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

void touch(const std::filesystem::path& path) { std::ofstream(path) << "foreign"; }

void check_refused(ModelCheckpoint::Config config, const std::string& part) {
  INFO(part);
  config.dirpath = "unused";
  CHECK_THROWS_AS(ModelCheckpoint(config), ConfigError);
  CHECK_THROWS_WITH(ModelCheckpoint(config), Contains(part));
}

struct Recorder : fabric::CheckpointObserver {
  std::vector<CheckpointEvent> events, failures;
  void before_save(const CheckpointEvent& event) override { events.push_back(event); }
  void save_failed(const CheckpointEvent& event) override { failures.push_back(event); }
};

}  // namespace

TEST_CASE("settings that make no sense are refused with what to write", "[checkpoint][config]") {
  check_refused({.save_top_k = -2}, "save_top_k");
  check_refused({.mode = "maxx"}, "did you mean 'max'");
  check_refused({.save_top_k = 2}, "monitor");
  check_refused({.monitor = ""}, "monitor");
  check_refused({.every_n_train_steps = -1}, "every_n_train_steps");
  check_refused({.every_n_epochs = -3}, "every_n_epochs");
  check_refused({.train_time_interval = -1}, "train_time_interval");
  check_refused({.train_time_interval = std::nan("")}, "train_time_interval");
  check_refused({.every_n_train_steps = 1, .every_n_epochs = 1}, "exclude each other");
  check_refused({.train_time_interval = 1, .every_n_epochs = 1}, "exclude each other");
  check_refused({.filename = "{epoch"}, "{epoch");
  check_refused({.save_on_signals = {"SIGTREM"}}, "did you mean 'SIGTERM'");
  check_refused({.agree_every_n_steps = 0}, "agree_every_n_steps");
  check_refused({.extension = "pt"}, "'.safetensors'");
  CHECK_THROWS_WITH(ModelCheckpoint({.dirpath = "s3://bucket/x", .save_last = "link"}), Contains("no local folder"));
  CHECK_THROWS_WITH(SaveLast("lnik"), Contains("did you mean 'link'"));
  CHECK_NOTHROW(ModelCheckpoint({.dirpath = "unused", .every_n_train_steps = 5, .every_n_epochs = 0}));
}

TEST_CASE("settings come from files and the command line", "[checkpoint][config]") {
  ModelCheckpoint::Config config;
  fabric::detail::Codec<ModelCheckpoint::Config>::update(
      config, fabric::read_yaml("{monitor: val_loss, save_last: link, save_top_k: 3, every_n_epochs: 2}"), "keep");
  CHECK(config.save_last == SaveLast("link"));
  CHECK(config.monitor == "val_loss");
  auto tree = fabric::detail::Codec<ModelCheckpoint::Config>::to(config);
  CHECK(tree.at("save_last") == fabric::Tree("link"));
  CHECK(SaveLast::from_tree(true) == SaveLast(true));
  CHECK(SaveLast::from_tree({}) == SaveLast(false));
  CHECK_THROWS_AS(SaveLast::from_tree(3), ConfigError);
}

TEST_CASE("mode max, losses 3 2 2.5 1 4, two kept: epochs 0 and 4, best 4", "[checkpoint][trace]") {
  Folder folder;
  auto config = watching(folder, 2);
  config.mode = "max";
  ModelCheckpoint keep(config);
  run(keep, {3, 2, 2.5, 1, 4});
  CHECK(names_in(folder) == Names{"epoch=0-step=1.safetensors", "epoch=4-step=5.safetensors"});
  CHECK(keep.best_model_score() == 4);
  CHECK(keep.best_model_path() == folder / "epoch=4-step=5.safetensors");
  CHECK(keep.kth_value() == 3);
  CHECK(number_in(keep.best_model_path()) == 4);
}

TEST_CASE("every second epoch and last over 5 epochs: epoch 3 and last", "[checkpoint][trace]") {
  Folder folder;
  ModelCheckpoint keep({.dirpath = folder.path(), .save_last = true, .every_n_epochs = 2});
  for (int epoch = 0; epoch < 5; ++epoch) keep.update({}, numbered(epoch));
  CHECK_FALSE(keep.finish(numbered(99)));
  CHECK(names_in(folder) == Names{"epoch=3-step=4.safetensors", "last.safetensors"});
  CHECK(number_in(folder / "last.safetensors") == 3);
}

TEST_CASE("a fixed name gets versions where two are kept, and is written over where one is", "[checkpoint][trace]") {
  for (int k : {1, 2}) {
    Folder folder;
    auto config = watching(folder, k);
    config.filename = "best";
    ModelCheckpoint keep(config);
    run(keep, {3, 2, 1});
    CHECK(names_in(folder) == (k == 1 ? Names{"best.safetensors"} : Names{"best-v1.safetensors", "best.safetensors"}));
    CHECK(number_in(keep.best_model_path()) == 1);
    if (k == 2) CHECK(number_in(keep.kth_best_model_path()) == 2);
  }
}

TEST_CASE("a file of somebody else is never written over", "[checkpoint]") {
  Folder folder;
  touch(folder / "best.safetensors");
  touch(folder / "last.safetensors");
  auto config = watching(folder);
  config.filename = "best";
  config.save_last = true;
  ModelCheckpoint keep(config);
  run(keep, {3, 2});
  CHECK(names_in(folder) ==
        Names{"best-v1.safetensors", "best.safetensors", "last-v1.safetensors", "last.safetensors"});
  CHECK(read_file(folder / "best.safetensors") == "foreign");
  CHECK(keep.last_model_path() == folder / "last-v1.safetensors");
  config.enable_version_counter = false;
  ModelCheckpoint careless(config);
  run(careless, {1});
  CHECK(number_in(folder / "best.safetensors") == 1);
}

TEST_CASE("ties keep the earliest; NaN is better than nothing and worse than all", "[checkpoint]") {
  Folder folder;
  ModelCheckpoint keep(watching(folder));
  run(keep, {2, 2, std::nan(""), 2});
  CHECK(names_in(folder) == Names{"epoch=0-step=1.safetensors"});

  Folder other;
  ModelCheckpoint nan_first(watching(other));
  run(nan_first, {std::nan("")});
  CHECK(nan_first.best_model_score() == kInf);
  CHECK(nan_first.current_score() == kInf);
  run(nan_first, {std::nan(""), 7});
  CHECK(names_in(other) == Names{"epoch=2-step=3.safetensors"});
}

TEST_CASE("all, none, and without a monitor the newest", "[checkpoint]") {
  Folder all, none, newest, every;
  auto config = watching(all, -1);
  ModelCheckpoint keep_all(config);
  run(keep_all, {1, 3, 2});
  CHECK(names_in(all).size() == 3);
  CHECK(keep_all.kth_value() == 3);
  config = watching(none, 0);
  ModelCheckpoint keep_none(config);
  run(keep_none, {1, 3});
  CHECK(names_in(none).empty());
  ModelCheckpoint keep_newest({.dirpath = newest.path()});
  run(keep_newest, {1, 3});
  CHECK(names_in(newest) == Names{"epoch=1-step=2.safetensors"});
  CHECK(keep_newest.best_model_path() == newest / "epoch=1-step=2.safetensors");
  CHECK_FALSE(keep_newest.best_model_score());
  ModelCheckpoint keep_every({.dirpath = every.path(), .filename = "x", .save_top_k = -1});
  run(keep_every, {1, 3});
  CHECK(names_in(every) == Names{"x-v1.safetensors", "x.safetensors"});
}

TEST_CASE("a metric that is missing is an error that lists what there is", "[checkpoint]") {
  Folder folder;
  ModelCheckpoint keep(watching(folder));
  CHECK_FALSE(keep.train_epoch_end({}, numbered(1)));  // before any validation: a warning
  CHECK_THROWS_AS(keep.update({{"val_los", 1}}, numbered(1)), ConfigError);
  CHECK_THROWS_WITH(keep.update({{"val_los", 1}}, numbered(1)), Contains("did you mean 'val_los'"));
  CHECK_THROWS_WITH(keep.update({}, numbered(1)), Contains("val_loss"));
}

TEST_CASE("last: a copy, a link, or at each trigger", "[checkpoint][last]") {
  Folder copy, link, always, only;
  auto config = watching(copy);
  config.save_last = true;
  ModelCheckpoint copies(config);
  run(copies, {1, 2, 0.5});
  CHECK(number_in(copy / "last.safetensors") == 0.5);
  CHECK_FALSE(std::filesystem::is_symlink(copy / "last.safetensors"));
  run(copies, {3});
  CHECK(number_in(copy / "last.safetensors") == 0.5);  // nothing was saved, so nothing is copied

  config = watching(link, 2);
  config.save_last = "link";
  ModelCheckpoint links(config);
  run(links, {3, 2, 1});
  CHECK(std::filesystem::read_symlink(link / "last.safetensors") == "epoch=2-step=3.safetensors");

  config = watching(always);
  config.save_last = "always";
  ModelCheckpoint writes(config);
  run(writes, {1, 2, 3});
  CHECK(number_in(always / "last.safetensors") == 3);
  CHECK(number_in(writes.best_model_path()) == 1);
  CHECK_FALSE(writes.finish(numbered(4)));

  config = watching(only, 0);
  config.save_last = "link";
  ModelCheckpoint nothing_else(config);
  run(nothing_else, {1, 2});
  CHECK(names_in(only) == Names{"last.safetensors"});
  CHECK(number_in(only / "last.safetensors") == 2);
}

TEST_CASE("a last that was a link is replaced, not what it leads to", "[checkpoint][last]") {
  Folder folder;
  auto config = watching(folder);
  config.save_last = "link";
  ModelCheckpoint links(config);
  run(links, {1});
  config.save_last = "always";
  ModelCheckpoint writes(config);
  writes.load_state_dict(links.state_dict());
  run(writes, {2});
  CHECK(number_in(folder / "last.safetensors") == 2);
  CHECK(number_in(folder / "epoch=0-step=1.safetensors") == 1);
}

TEST_CASE("at the end of training last is there, if nothing was saved before", "[checkpoint][last]") {
  Folder folder;
  ModelCheckpoint keep({.dirpath = folder.path(), .save_last = true, .every_n_epochs = 10});
  CHECK_FALSE(keep.finish(numbered(0)));  // no step was taken
  for (int epoch = 0; epoch < 3; ++epoch) keep.update({}, numbered(epoch));
  CHECK(keep.finish(numbered(5)));
  CHECK(names_in(folder) == Names{"last.safetensors"});
  CHECK(number_in(folder / "last.safetensors") == 5);
}

TEST_CASE("names of last may vary; its old file goes", "[checkpoint][last]") {
  Folder folder;
  auto config = watching(folder);
  config.save_last = true;
  config.last_filename = "last-{epoch}";
  ModelCheckpoint keep(config);
  run(keep, {3, 2});
  CHECK(names_in(folder) == Names{"epoch=1-step=2.safetensors", "last-epoch=1.safetensors"});
}

TEST_CASE("what a checkpoint says of itself", "[checkpoint][state]") {
  Folder folder;
  auto config = watching(folder, 2);
  config.save_last = true;
  ModelCheckpoint keep(config);
  Recorder observer;
  keep.add_observer(observer);
  for (double loss : {3.0, 2.0, 5.0}) keep.update({{"val_loss", loss}}, {{"keep", keep}, {"loss", loss}});
  auto inside = read(keep.best_model_path()).at("keep");
  CHECK(inside.at("best_model_path").as_string() == keep.best_model_path().string());
  CHECK(inside.at("best_model_score").as_double() == 2);
  CHECK(inside.at("last_model_path").as_string() == (folder / "last.safetensors").string());
  CHECK(inside.at("best_k_models").as_map().size() == 2);
  CHECK(inside.at("kth_value").as_double() == 3);
  REQUIRE(observer.events.size() == 2);
  CHECK((observer.events[1].top_k && observer.events[1].new_best));
  CHECK(observer.events[1].path == keep.best_model_path());
  keep.remove_observer(observer);
  run(keep, {1});
  CHECK(observer.events.size() == 2);
}

TEST_CASE("only a new best is announced as one", "[checkpoint][state]") {
  Folder folder;
  auto config = watching(folder, 3);
  config.save_last = "always";
  ModelCheckpoint keep(config);
  Recorder observer;
  keep.add_observer(observer);
  run(keep, {1, 1, 2, 9, 0.5});
  std::vector<std::pair<bool, bool>> seen;
  for (const auto& event : observer.events) seen.emplace_back(event.top_k, event.new_best);
  CHECK(seen ==
        std::vector<std::pair<bool, bool>>{{true, true}, {true, false}, {true, false}, {false, false}, {true, true}});
}

TEST_CASE("weights only leaves out optimizers and everything stateful", "[checkpoint]") {
  Folder folder;
  torch::nn::Linear model(2, 2);
  torch::optim::SGD sgd(model->parameters(), 0.1);
  auto config = watching(folder);
  config.save_weights_only = true;
  ModelCheckpoint keep(config);
  keep.update({{"val_loss", 1}}, {{"model", model}, {"sgd", sgd}, {"keep", keep}, {"epoch", 0}});
  auto saved = read(keep.best_model_path());
  CHECK((saved.find("model") && saved.find("epoch")));
  CHECK_FALSE((saved.find("sgd") || saved.find("keep")));
}

TEST_CASE("the scores are exported as YAML, best first", "[checkpoint]") {
  Folder folder;
  ModelCheckpoint keep(watching(folder, 2));
  run(keep, {3, 2});
  keep.write_yaml();
  auto tree = fabric::read_tree_file((folder / "best_k_models.yaml").string());
  REQUIRE(tree.as_map().size() == 2);
  CHECK(tree.as_map().begin()->first == keep.best_model_path().string());
  CHECK(tree.as_map().begin()->second.as_double() == 2);
  keep.write_yaml(folder / "scores.yaml");
  CHECK(std::filesystem::exists(folder / "scores.yaml"));
}

TEST_CASE("names may have folders", "[checkpoint]") {
  Folder folder;
  auto config = watching(folder);
  config.filename = "epoch{epoch}/loss{val_loss:.1f}";
  config.auto_insert_metric_name = false;
  ModelCheckpoint keep(config);
  run(keep, {3, 2});
  CHECK(names_in(folder / "epoch1") == Names{"loss2.0.safetensors"});
  CHECK(names_in(folder / "epoch0").empty());
}

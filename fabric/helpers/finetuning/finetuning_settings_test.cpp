// Settings, what they refuse, and what the scheduler says and writes.
#include "tests/support/finetuning_trace.h"

using namespace finetuning_test;
using namespace fabric;

TEST_CASE("restore_best needs a checkpoint that keeps the best", "[finetuning]") {
  Script script;
  script.save_top_k = 0;
  CHECK(contains(error_of<ConfigError>([&] { Run{script}; }), "its save_top_k is 0"));
  Run run{Script{}};
  ModelCheckpoint plain({.dirpath = run.folder.file("other")});
  Run fresh([] {
    Script s;
    s.checkpoints = false;
    return s;
  }());
  CHECK(contains(error_of<ConfigError>([&] { fresh.schedule->attach(plain); }), "it has no monitor"));
  CHECK(contains(error_of<ConfigError>([&] { fresh.go(); }), "attach a ModelCheckpoint"));
  Script weights;
  weights.checkpoints = false;
  Run without(weights);
  ModelCheckpoint only_weights({.dirpath = without.folder.file("w"), .monitor = "val_loss", .save_weights_only = true});
  without.schedule->attach(only_weights);
  CHECK(contains(error_of<ConfigError>([&] { without.go(); }), "save_weights_only"));
  Script endless;
  endless.early_stopping = false;
  CHECK(contains(error_of<ConfigError>([&] { Run{endless}.go(); }), "nothing ends phase 0, 1, 2"));
}

TEST_CASE("learning-rate schedulers that are not known to work", "[finetuning]") {
  Script script;
  script.scheduler = [](torch::optim::Optimizer& optimizer) {
    return std::make_unique<PolynomialLR>(optimizer, PolynomialLR::Config{.total_iters = 20});
  };
  CHECK(contains(error_of<ConfigError>([&] { Run{script}; }), "PolynomialLR is not among"));
  script.config.allow_untested = true;
  Run allowed(script);
  CHECK(allowed.said.warned("because of allow_untested"));
  CHECK(allowed.go().depth.back() == 3);
}

TEST_CASE("one optimizer", "[finetuning]") {
  Net net;
  torch::optim::SGD a(net->parameters(), 0.1), b(net->parameters(), 0.1);
  CHECK(contains(error_of<ConfigError>([&] {
                   FinetuningScheduler({}, net, std::vector<OptimizerHandle>{a, b});
                 }),
                 "works with one optimizer, given 2"));
}

TEST_CASE("settings that cannot be", "[finetuning]") {
  auto fails = [](auto change) {
    Script script;
    change(script.config);
    return error_of<ConfigError>([&] { Run{script}; });
  };
  CHECK(contains(fails([](auto& c) { c.max_depth = -2; }), "max_depth is -2"));
  CHECK(contains(fails([](auto& c) { c.logging_level = "inof"; }), "did you mean 'info'"));
  CHECK(contains(fails([](auto& c) { c.ft_schedule = 3; }), "path of a file, a map or null"));
  CHECK(contains(fails([](auto& c) { c.ft_schedule = "/nowhere/bert.yaml"; }), "/nowhere/bert.yaml"));
  CHECK(contains(fails([](auto& c) { c.lr_stepping.interval = "batch"; }), "interval 'batch' is unknown"));
  CHECK(contains(fails([](auto& c) { c.strategy_adapter_cfg = Tree::Map{{"fsdp_plan", 1}}; }), "no settings"));
  // A schedule for another model names what is missing, and what may have been meant.
  CHECK(contains(fails([](auto& c) { c.ft_schedule = tree("0: {params: [bert.pooler.dense.weight]}"); }),
                 "'bert.pooler.dense.weight' is no parameter"));
}

TEST_CASE("gen_ft_sched_only writes the schedule and touches nothing", "[finetuning]") {
  Script script;
  script.config.gen_ft_sched_only = true;
  Run run(script);
  CHECK(run.schedule->generated_only());
  CHECK(run.schedule->done());
  CHECK(run.schedule->schedule_file() == run.folder.file("Net_ft_schedule.yaml"));
  Tree written = read_tree_file(run.schedule->schedule_file());
  CHECK(written.at("0").at("params").as_list()[0].as_string() == "model.3.bias");
  CHECK(run.net->parameters()[0].requires_grad());
  CHECK(run.optimizer->param_groups()[0].params().size() == 8);
  CHECK(contains(error_of<MisuseError>([&] { run.schedule->epoch_start(0); }), "gen_ft_sched_only"));
  Script next;  // and it can be used as it is
  next.config.ft_schedule = run.schedule->schedule_file();
  Run again(next);
  CHECK(again.go().depth == Ints{0, 0, 0, 0, 1, 2, 3});
}

TEST_CASE("a schedule in use is written to log_dir; a folder that cannot be written is a warning", "[finetuning]") {
  Script script;
  script.config.ft_schedule = tree("0: {params: ['model.3.*']}\n1: {params: [<rest>]}");
  Run run(script);
  CHECK(read_tree_file(run.schedule->schedule_file()) == script.config.ft_schedule);  // before it was expanded
  script.config.log_dir = "/proc/nowhere";
  Run unwritable(script);
  CHECK(unwritable.said.warned("cannot be written"));
  script.config.gen_ft_sched_only = true;
  CHECK(error_of<CheckpointError>([&] { Run{script}; }) != "");
}

TEST_CASE("levels of messages", "[finetuning]") {
  Script script;
  script.config.logging_level = "warn";
  Run quiet(script);
  quiet.go();
  CHECK(quiet.said.lines.empty());
  script.config.logging_level = "debug";
  Run loud(script);
  loud.go();
  CHECK(loud.said.count(log::Level::debug, "thawed in phase 1: model.2.bias, model.2.weight") == 1);
  CHECK(loud.said.informed("phase 1 of 3 begins at epoch 4: 2 tensors thawed, 1 group added at lr 1e-05"));
}

TEST_CASE("the table of a schedule", "[finetuning]") {
  Script script;
  script.config.ft_schedule =
      tree("0: {params: [model.3], max_transition_epoch: 4}\n1: {params: [model.2], lr: 2e-5}\n2: {params: [model.1]}");
  script.config.max_depth = 1;
  Run run(script);
  std::string table = run.schedule->table();
  INFO(table);
  CHECK(contains(table, "phase"));
  CHECK(contains(table, "0  now"));
  CHECK(contains(table, "not trained"));
  CHECK(contains(table, "2e-05"));
  CHECK(contains(table, "epoch 4"));
  CHECK(contains(table, "48 elements in all, 12 in no phase"));
  run.go();
  CHECK(contains(run.schedule->table(), "0  done"));
}

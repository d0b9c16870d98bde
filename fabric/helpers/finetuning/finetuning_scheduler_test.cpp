#include "tests/support/finetuning_trace.h"

using namespace finetuning_test;
using namespace fabric;

namespace {

Script epochs_only(const std::string& schedule, int epochs, int max_epochs = -1) {
  Script script;
  script.config.ft_schedule = tree(schedule);
  script.config.epoch_transitions_only = true;
  script.early_stopping = false;
  script.config.max_epochs = max_epochs;
  script.losses = {9, 8, 7, 6, 5, 4, 3, 2, 1};
  script.epochs = epochs;
  return script;
}

}  // namespace

TEST_CASE("phases, learning rates, moments and groups of a run with early stopping", "[finetuning]") {
  for (bool restore : {true, false}) {
    Script script;
    script.config.restore_best = restore;
    Run run(script);
    run.go();
    INFO(run.said.text());
    CHECK(run.depth == Ints{0, 0, 0, 0, 1, 2, 3});
    CHECK(run.last == 6);
    CHECK(run.stop->stopped_epoch() == 6);
    REQUIRE(run.lrs.size() == 7);
    CHECK_LRS(run.lrs[0], {1e-3});
    CHECK_LRS(run.lrs[1], {7e-4});
    CHECK_LRS(run.lrs[2], {4.9e-4});
    CHECK_LRS(run.lrs[3], {3.43e-4});
    CHECK_LRS(run.lrs[4], {2.401e-4, 1e-5});
    CHECK_LRS(run.lrs[5], {1.6807e-4, 7e-6, 1e-5});
    CHECK_LRS(run.lrs[6], {1.17649e-4, 4.9e-6, 7e-6, 1e-5});
    CHECK(run.states == (restore ? Ints{0, 2, 2, 2, 2, 2, 2} : Ints{0, 2, 2, 2, 2, 4, 6}));
    CHECK(run.thawed == Ints{2, 2, 2, 2, 4, 6, 8});
    CHECK(run.groups == Ints{1, 1, 1, 1, 2, 3, 4});
    CHECK(run.schedule->restore_count() == (restore ? 3 : 0));
    CHECK(run.schedule->done());
  }
}

TEST_CASE("each phase begins with the best checkpoint's weights", "[finetuning]") {
  Run run{Script{}};
  int transitions = 0;
  run.after_transition = [&](int) {
    ++transitions;
    CHECK(run.schedule->restore_count() == transitions);
    Value best = make_checkpoint_io()->load(run.keep->best_model_path());
    for (const auto& item : run.net->named_parameters())
      CHECK(torch::equal(item.value(), best.at("model").at(item.key()).as<at::Tensor>()));
  };
  run.go();
  CHECK(transitions == 3);
}

TEST_CASE("max_depth", "[finetuning]") {
  for (auto [given, reached] : std::vector<std::pair<int, int>>{{-1, 3}, {999, 3}, {0, 0}, {2, 2}}) {
    Script script;
    script.config.max_depth = given;
    Run run(script);
    run.go();
    CHECK(run.schedule->max_depth() == reached);
    CHECK(run.schedule->curr_depth() == reached);
    CHECK(run.schedule->depth_remaining() == 0);
    CHECK(run.thawed.back() == 2 * (reached + 1));
    CHECK(run.net->parameters()[0].requires_grad() == (reached == 3));
    if (reached > 0) CHECK(run.said.informed("max_depth " + std::to_string(reached)));
  }
}

TEST_CASE("phases that end at epochs alone", "[finetuning]") {
  Run run(
      epochs_only("0: {params: [model.3], max_transition_epoch: 3}\n1: {params: [model.2], max_transition_epoch: "
                  "4}\n2: {params: [<rest>], max_transition_epoch: 6}",
                  6, 6));
  run.go();
  CHECK(run.depth == Ints{0, 0, 0, 1, 2, 2});
  Run odd(
      epochs_only("0: {params: [model.3], max_transition_epoch: 3}\n1: {params: [model.2], max_transition_epoch: "
                  "2}\n2: {params: [<rest>], max_transition_epoch: 2}",
                  6, 6));
  odd.go();
  CHECK(odd.depth == Ints{0, 0, 0, 1, 2, 2});
  CHECK(odd.said.informed("may last a single epoch"));
}

TEST_CASE("epochs alone: a phase without a limit is an error, an EarlyStopping is left aside", "[finetuning]") {
  auto script = epochs_only("0: {params: [model.3], max_transition_epoch: 3}\n1: {params: [model.2]}", 6);
  CHECK(contains(error_of<ConfigError>([&] { Run{script}; }), "missing in phase 1."));
  script = epochs_only(
      "0: {params: [model.3], max_transition_epoch: 3}\n1: {params: [model.2], max_transition_epoch: 5}", 9);
  script.early_stopping = true;
  script.losses = {1};
  Run run(script);
  CHECK(run.said.warned("it is left aside"));
  run.go();
  CHECK(run.depth == Ints{0, 0, 0, 1, 1});  // patience 1 would have ended phase 0 at epoch 2
  CHECK(run.said.warned("the last phase, 1, has max_transition_epoch 5"));
  CHECK(run.schedule->max_epochs() == 5);
}

TEST_CASE("a limit of the last phase raises max_epochs", "[finetuning]") {
  for (auto [given, resulting] : std::vector<std::pair<int, int>>{{-1, 7}, {3, 7}, {20, 20}}) {
    Script script;
    script.config.ft_schedule = tree("0: {params: [model.3]}\n1: {params: [model.2], max_transition_epoch: 7}");
    script.config.max_epochs = given;
    Run run(script);
    CHECK(run.said.warned("training ends there"));
    CHECK(run.schedule->max_epochs() == resulting);
  }
}

TEST_CASE("a limit ends a phase although patience is left", "[finetuning]") {
  Script script;
  script.config.ft_schedule = tree("0: {params: [model.3], max_transition_epoch: 2}\n1: {params: [model.2]}");
  script.losses = {9, 8, 7, 6, 5, 4, 3, 2};
  script.patience = 5;
  script.epochs = 8;
  Run run(script);
  run.go();
  CHECK(run.depth == Ints{0, 0, 1, 1, 1, 1, 1, 1});
}

TEST_CASE("a limit of 0 skips a phase", "[finetuning]") {
  Script script;
  script.config.ft_schedule = tree("0: {params: [model.3], max_transition_epoch: 0}\n1: {params: [model.2]}");
  script.config.restore_best = false;
  script.epochs = 1;
  Run run(script);
  run.go();
  CHECK(run.depth == Ints{1});
  CHECK_LRS(run.lrs[0], {1e-3, 1e-5});
  script.config.restore_best = true;  // there is no checkpoint yet: a warning instead of a crash
  Run restoring(script);
  restoring.go();
  CHECK(restoring.depth == Ints{1});
  CHECK(restoring.said.warned("no checkpoint has been written yet"));
}

TEST_CASE("learning rates of phases", "[finetuning]") {
  Script script;
  script.config.ft_schedule =
      tree("0: {params: [model.3]}\n1: {params: [model.2], lr: 1.0e-6}\n2: {params: [model.1]}");
  Run run(script);
  std::map<int, double> added;
  run.after_transition = [&](int) { added[run.schedule->curr_depth()] = get_lr(run.optimizer->param_groups().back()); };
  run.go();
  CHECK_LRS((Lrs{run.lrs[0][0], added[1], added[2]}), {1e-3, 1e-6, 1e-5});

  script.config.ft_schedule = tree("0: {params: [model.3]}\n1: {params: [model.2]}");
  script.config.base_max_lr = std::nullopt;  // what the first group has then
  Run first_group(script);
  first_group.go();
  CHECK_LRS(first_group.lrs[4], {2.401e-4, 2.401e-4});
}

TEST_CASE("without a learning-rate scheduler groups are added plainly", "[finetuning]") {
  Script script;
  script.scheduler = nullptr;
  script.lr = 0.1;
  Run run(script);
  run.go();
  CHECK_LRS(run.lrs.front(), {0.1});
  CHECK_LRS(run.lrs.back(), {0.1, 1e-5, 1e-5, 1e-5});
}

TEST_CASE("ties and later saves leave the record of the best checkpoint alone", "[finetuning]") {
  Script script;
  script.losses = {1};
  script.save_top_k = 3;
  script.epochs = 6;
  Run run(script);
  run.go();
  CHECK(run.schedule->curr_depth() == 3);
  CHECK(run.schedule->best_ckpt_depth() == 0);
  CHECK(run.schedule->current_ckpt_depth() == 1);
}

TEST_CASE("no_decay puts parameters into groups of their own", "[finetuning]") {
  Script script;
  script.config.no_decay = {"bias"};
  script.only_phase0 = true;  // so that phase 0 is not split
  script.weight_decay = 1e-2;
  Run implicit(script);
  implicit.go();
  CHECK(implicit.groups.back() == 7);
  script.config.ft_schedule = tree("0: {params: [model.3]}\n1: {params: [model.2]}\n2: {params: [model.1]}");
  Run written(script);
  written.go();
  REQUIRE(written.groups.back() == 5);
  auto decay = [&](std::size_t i) {
    return static_cast<torch::optim::SGDOptions&>(written.optimizer->param_groups()[i].options()).weight_decay();
  };
  CHECK(decay(1) == 1e-2);
  CHECK(decay(2) == 0);
  CHECK(written.optimizer->param_groups()[2].params().size() == 1);
}

TEST_CASE("no_decay when phase 0 is enforced, with schedulers that keep numbers per group", "[finetuning]") {
  Script script;
  script.config.no_decay = {"bias"};
  script.config.lr_stepping.monitor = "val_loss";
  script.scheduler = [](torch::optim::Optimizer& optimizer) {
    return std::make_unique<ReduceLROnPlateau>(optimizer, ReduceLROnPlateau::Config{.min_lr = 1e-7});
  };
  Run plateau(script);
  CHECK(plateau.optimizer->param_groups().size() == 2);
  CHECK(plateau.said.informed("made anew for phase 0"));
  auto& reduce = dynamic_cast<ReduceLROnPlateau&>(*plateau.lr);
  CHECK_LRS(reduce.min_lrs(), {1e-7, 1e-7});
  plateau.go();
  CHECK_LRS(reduce.min_lrs(), {1e-7, 1e-7, 1e-7, 1e-7, 1e-7, 1e-7, 1e-7, 1e-7});
  script.scheduler = [](torch::optim::Optimizer& optimizer) {
    return std::make_unique<LambdaLR>(optimizer, [](std::int64_t epoch) { return 1.0 / (1 + epoch); });
  };
  Run lambda(script);
  CHECK_LRS(lambda.lr->base_lrs(), {1e-3, 1e-3});
  lambda.go();
  CHECK(lambda.groups.back() == 8);
  CHECK_LRS(lambda.lrs[1], {5e-4, 5e-4});
}

TEST_CASE("an optimizer that holds everything is left alone when phase 0 is not enforced", "[finetuning]") {
  Script script;
  script.config.enforce_phase0_params = false;
  Run run(script);
  CHECK(run.said.warned("6 of its parameters are frozen now"));
  run.go();
  CHECK(run.groups == Ints(run.groups.size(), 1));
  CHECK(run.optimizer->param_groups()[0].params().size() == 8);
  CHECK(run.said.warned("has the parameters already"));
}

TEST_CASE("groups of a phase are added once; empty phases add none", "[finetuning]") {
  for (bool split : {false, true}) {
    Script script;
    script.config.no_decay = split ? Names{"bias"} : Names{};
    Run run(script);
    run.schedule->thaw_to_depth(1);
    CHECK(run.schedule->step_pg(1) == (split ? 2 : 1));
    CHECK(run.schedule->step_pg(1) == 0);
    CHECK(error_of<MisuseError>([&] { run.schedule->step_pg(4); }) != "");
  }
  Script script;
  script.config.ft_schedule = tree("0: {params: [model.3]}\n1: {params: []}\n2: {params: [model.1]}");
  Run run(script);
  run.go();
  CHECK(run.groups == Ints{1, 1, 1, 1, 1, 2});
  CHECK(run.said.warned("phase 1: no groups were added"));
}

TEST_CASE("runs that end in phase 0, and by other reasons than patience", "[finetuning]") {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  for (double bad : {inf, nan}) {
    Script script;
    script.config.max_depth = 0;
    script.losses = {4, 3, bad};
    Run run(script);
    run.go();
    CHECK(run.stop->stopped_epoch() == 2);
    script.config.max_depth = -1;  // what is not finite ends the whole run from any phase
    Run all(script);
    all.go();
    CHECK(all.stop->stopped_epoch() == 2);
    CHECK(all.schedule->curr_depth() == 0);
  }
  Script script;
  script.config.max_depth = 0;
  script.losses = {8, 4, 2, 3, 4, 5, 8, 10};
  script.patience = 3;
  Run patience(script);
  CHECK(patience.go().last == 5);
  script.losses = {9, 8, 7, 6, 5, 6, 4, 3, 2};
  script.stopping_threshold = 2.9;
  Run threshold(script);
  CHECK(threshold.go().last == 8);
}

TEST_CASE("a phase that is complete after the first of two validations waits for the next epoch", "[finetuning]") {
  Script script;
  script.checks = 2;
  script.losses = {5, 5};
  script.losses.resize(130, 5);
  script.losses[101] = 1;  // the second check of epoch 1 improves, which does not undo the first one's finding
  script.epochs = 4;
  script.patience = 2;
  Run run(script);
  run.go();
  CHECK(run.depth[0] == 0);
  CHECK(run.depth[1] == 0);
  CHECK(run.depth[2] == 1);
}

TEST_CASE("transitions at steps, refreezing and scaled learning rates", "[finetuning]") {
  Script script;
  script.config.ft_schedule = tree(
      "0: {params: [model.3], max_transition_step: 5}\n1: {params: [model.2], freeze: [model.3.bias], scale_lr: 0.5}\n"
      "2: {params: [model.1, model.3.bias]}");
  script.config.restore_best = false;
  script.config.max_depth = 1;
  script.scheduler = nullptr;
  script.steps = 4;
  script.losses = {3, 2, 1};
  script.epochs = 3;
  Run run(script);
  run.go();
  CHECK(run.depth == Ints{0, 0, 1});
  CHECK_LRS(run.lrs[2], {5e-4, 1e-5});
  CHECK(run.thawed == Ints{2, 2, 3});
  at::Tensor bias = run.net->named_parameters()["model.3.bias"];
  CHECK(!bias.requires_grad());
  CHECK(!bias.grad().defined());
  CHECK(run.optimizer->param_groups()[0].params().size() == 2);  // it stays in its group and is skipped
  script.config.max_depth = 2;
  Run thawed_again(script);
  thawed_again.schedule->schedule_transition();
  thawed_again.schedule->schedule_transition();
  CHECK(thawed_again.schedule->thawed_params().size() == 6);
  CHECK(thawed_again.schedule->depth_remaining() == 0);
  CHECK(error_of<MisuseError>([&] { thawed_again.schedule->schedule_transition(); }) != "");
}

TEST_CASE("single moves", "[finetuning]") {
  Script script;
  script.config.restore_best = false;
  Run run(script);
  run.schedule->freeze_before_training();
  CHECK(run.schedule->thawed_params().empty());
  run.schedule->thaw_to_depth(2);
  CHECK(run.schedule->thawed_params().size() == 6);
  CHECK(run.optimizer->param_groups().size() == 1);
  run.schedule->thaw_to_depth(0);
  CHECK(run.schedule->thawed_params() == Names{"model.3.weight", "model.3.bias"});
  CHECK(!run.schedule->should_transition(0));
  run.stop->set_phase_complete(true);
  CHECK(run.schedule->should_transition(0));
  CHECK(run.schedule->epoch_start(3));
  CHECK(run.schedule->curr_depth() == 1);
  CHECK(!run.stop->phase_complete());
  CHECK(run.schedule->ft_epoch() == 3);
}

TEST_CASE("the scheduler may outlive the checkpoints, and they it", "[finetuning]") {
  Run run{Script{}};
  run.go();
  run.keep.reset();
  run.schedule.reset();
  Run other{Script{}};
  other.go();
  other.schedule.reset();
  other.keep->update({{"val_loss", -1.0}}, State{{"model", other.net}}, {.epoch = 9, .step = 99});
}

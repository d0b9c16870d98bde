#include <torch/optim/adam.h>

#include "tests/support/finetuning_trace.h"

using namespace finetuning_test;
using namespace fabric;

namespace {

// Losses 2, 1, 1, …, patience 2: transitions at epochs 4, 6 and 8, last epoch 9.
Script slow(const std::string& phase1 = "", const std::string& phase2 = "") {
  Script script;
  script.losses = {2, 1};
  script.patience = 2;
  script.config.ft_schedule = tree("0: {params: [model.3]}\n1: {params: [model.2]" + phase1 +
                                   "}\n2: {params: [model.1]" + phase2 + "}\n3: {params: [model.0]}");
  return script;
}

const std::string kHalving =
    ", new_lr_scheduler: {lr_scheduler_init: {class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 1, "
    "gamma: 0.5}}}";

}  // namespace

TEST_CASE("a phase with its own learning-rate scheduler", "[finetuning][reinit]") {
  Run plain(slow());
  plain.go();
  CHECK(plain.depth == Ints{0, 0, 0, 0, 1, 1, 2, 2, 3, 3});
  CHECK(plain.last == 9);
  Run run(slow(kHalving));
  run.go();
  CHECK(run.depth == plain.depth);
  for (std::size_t e = 0; e < 4; ++e) CHECK(close(run.lrs[e], plain.lrs[e]));
  CHECK_LRS(run.lrs[4], {1e-3, 1e-5});
  CHECK_LRS(run.lrs[5], {5e-4, 5e-6});
  CHECK(run.lr.get() == run.schedule->lr_scheduler());  // the caller's variable holds the new one
}

TEST_CASE("a new scheduler that takes over the present learning rates", "[finetuning][reinit]") {
  Run run(slow(kHalving,
               ", new_lr_scheduler: {lr_scheduler_init: {class_path: StepLR, init_args: {step_size: 1, gamma: "
               "0.7}}, use_current_optimizer_pg_lrs: true}"));
  run.go();
  CHECK_LRS(run.lrs[6], {2.5e-4, 2.5e-6, 1e-5});
  CHECK_LRS(run.lrs[7], {1.75e-4, 1.75e-6, 7e-6});
}

TEST_CASE("a phase with its own optimizer", "[finetuning][reinit]") {
  const std::string adam = ", new_optimizer: {optimizer_init: {class_path: torch.optim.Adam, init_args: {lr: 2.1e-4}}}";
  auto script = slow(adam);
  script.config.restore_best = false;
  Run run(script);
  run.go();
  CHECK_LRS(run.lrs[4], {2.401e-4, 1e-5});
  CHECK(run.states[4] == 0);
  CHECK_LRS(run.lrs[6], {1.17649e-4, 4.9e-6, 1e-5});
  CHECK(dynamic_cast<torch::optim::Adam*>(run.optimizer.get()));
  CHECK(&run.schedule->optimizer() == run.optimizer.get());

  // With restore_best the best checkpoint is SGD's; that is found before anything is changed.
  Run restoring(slow(adam));
  std::string error = error_of<CheckpointKeyError>([&] { restoring.go(); });
  CHECK(contains(error, "written in phase 0 with SGD, the optimizer is Adam"));
  CHECK(contains(error, "new_optimizer"));
  CHECK(restoring.last == 6);
  CHECK(restoring.schedule->curr_depth() == 1);
  CHECK(restoring.optimizer->param_groups().size() == 2);
  CHECK(dynamic_cast<torch::optim::Adam*>(restoring.optimizer.get()));
  // A phase that makes a new one again needs no moments.
  Run twice(slow(adam, adam));
  CHECK(error_of<CheckpointKeyError>([&] { twice.go(); }).find("in phase 3") != std::string::npos);
  CHECK(twice.depth.back() == 2);
}

TEST_CASE("a new optimizer and a new scheduler in one phase start from the new optimizer's learning rate",
          "[finetuning][reinit]") {
  auto script = slow(", new_optimizer: {optimizer_init: {class_path: AdamW, init_args: {lr: 3.0e-4}}}" + kHalving);
  script.config.restore_best = false;
  Run run(script);
  run.go();
  CHECK_LRS(run.lrs[4], {3e-4, 1e-5});
  CHECK_LRS(run.lrs[5], {1.5e-4, 5e-6});
  CHECK(&run.lr->optimizer() == run.optimizer.get());
}

TEST_CASE("lambdas and new groups", "[finetuning][reinit]") {
  for (bool apply : {false, true}) {
    auto script = slow();
    script.config.apply_lambdas_new_pgs = apply;
    script.scheduler = [](torch::optim::Optimizer& optimizer) {
      return std::make_unique<LambdaLR>(optimizer, [](std::int64_t epoch) { return 1.0 / (1 + epoch); });
    };
    Run run(script);
    run.go();
    if (apply) {
      CHECK_LRS(run.lrs[4], {2e-4, 2e-6});
      CHECK(run.lrs[6][2] == Approx(1e-5 / 7));
    } else {
      CHECK_LRS(run.lrs[4], {2e-4, 1e-5});
      CHECK_LRS(run.lrs[5], {1e-3 / 6, 1e-5 / 6});
      CHECK_LRS(run.lrs[6], {1e-3 / 7, 1e-5 / 7, 1e-5});
    }
    CHECK(run.said.count(log::Level::warn, "apply_lambdas_new_pgs") == (apply ? 0 : 3));
  }
}

TEST_CASE("init_pg_lrs goes to the first groups in order", "[finetuning][reinit]") {
  const std::string warm =
      ", new_lr_scheduler: {lr_scheduler_init: {class_path: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts, "
      "init_args: {T_0: 10}}, init_pg_lrs: [1.0e-6, '2e-6']}, lr: 3.0e-6";
  Run run(slow("", warm));
  run.go();
  CHECK(run.said.warned("the 2 numbers of init_pg_lrs"));
  CHECK_LRS(run.lrs[6], {1e-6, 2e-6, 3e-6});
  REQUIRE(run.lrs[8].size() == 4);
  CHECK(run.lrs[8][3] == Approx(1e-5));
}

TEST_CASE("a new scheduler at every phase of a schedule made of the model", "[finetuning][reinit]") {
  Script script;
  script.config.reinit_lr_cfg =
      tree("lr_scheduler_init: {class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 1, gamma: 0.7}}");
  Run run(script);
  run.go();
  CHECK_LRS(run.lrs[4], {1e-3, 1e-5});
  CHECK_LRS(run.lrs[5], {1e-3, 1e-5, 1e-5});
  CHECK_LRS(run.lrs[6], {1e-3, 1e-5, 1e-5, 1e-5});
  script.config.reinit_lr_cfg = {};
  script.config.reinit_optim_cfg = tree("optimizer_init: {class_path: Adam}");  // init_args may be left out
  Run optimizers(script);
  optimizers.go();
  CHECK(optimizers.depth.back() == 3);
  CHECK(optimizers.states == Ints{0, 2, 2, 2, 0, 0, 0});
}

TEST_CASE("ReduceLROnPlateau gets its metric by name", "[finetuning][reinit]") {
  const std::string plateau =
      ", new_lr_scheduler: {lr_scheduler_init: {class_path: ReduceLROnPlateau, init_args: {factor: 0.5, patience: 0}}, "
      "pl_lrs_cfg: {monitor: val_loss, frequency: 1, interval: epoch, strict: true, name: mine, reduce_on_plateau: "
      "true}}";
  Run run(slow(plateau));
  run.go();
  CHECK_LRS(run.lrs[4], {1e-3, 1e-5});
  CHECK_LRS(run.lrs[6], {5e-4, 5e-6, 1e-5});
  Script script;
  script.scheduler = [](torch::optim::Optimizer& optimizer) { return std::make_unique<ReduceLROnPlateau>(optimizer); };
  CHECK(contains(error_of<ConfigError>([&] { Run{script}.go(); }), "needs a metric"));
  script.config.lr_stepping.monitor = "val_los";
  CHECK(contains(error_of<ConfigError>([&] { Run{script}.go(); }), "did you mean 'val_loss'"));
  script.config.lr_stepping.strict = false;
  Run lenient(script);
  lenient.go();
  CHECK(lenient.said.warned("Its step is left out"));
}

TEST_CASE("schedulers that step after optimizer steps, and every few epochs", "[finetuning][reinit]") {
  Script script;
  script.steps = 3;
  script.config.lr_stepping.interval = "step";
  Run steps(script);
  steps.go();
  CHECK_LRS(steps.lrs[1], {1e-3 * 0.343});
  script.config.lr_stepping = {.frequency = 2};
  Run second(script);
  second.go();
  CHECK_LRS(second.lrs[1], {1e-3});
  CHECK_LRS(second.lrs[2], {7e-4});
}

TEST_CASE("settings of new optimizers and schedulers that cannot be", "[finetuning][reinit]") {
  auto phase1 = [](const std::string& text) { return error_of<ConfigError>([&] { Run{slow(", " + text)}; }); };
  auto everywhere = [](const std::string& yaml) {
    return error_of<ConfigError>([&] {
      Script script;
      script.config.reinit_lr_cfg = tree(yaml);
      Run{script};
    });
  };
  CHECK(contains(phase1("new_optimizer: {class_path: SGD}"), "'class_path' is unknown"));
  CHECK(contains(phase1("new_optimizer: {}"), "'optimizer_init' is missing"));
  CHECK(contains(phase1("new_optimizer: {optimizer_init: {init_args: {lr: 1}}}"), "'class_path' is missing"));
  CHECK(contains(phase1("new_optimizer: {optimizer_init: {class_path: SDG}}"), "SGD"));
  CHECK(contains(phase1("new_optimizer: {optimizer_init: {class_path: SGD, init_args: {momentun: 1}}}"), "momentum"));
  CHECK(
      contains(phase1("new_optimizer: {optimizer_init: {class_path: torch.distributed.optim.ZeroRedundancyOptimizer}}"),
               "ZeroRedundancyOptimizer cannot be made anew"));
  CHECK(contains(phase1("new_lr_scheduler: {}"), "'lr_scheduler_init' is missing"));
  CHECK(contains(phase1("new_lr_scheduler: {lr_scheduler_init: {class_path: StepLR, init_args: {step: 1}}}"), "step"));
  CHECK(contains(phase1("new_lr_scheduler: {lr_scheduler_init: {class_path: PolynomialLR}}"), "not among"));
  CHECK(contains(phase1("new_lr_scheduler: {lr_scheduler_init: {class_path: ConstantLR}, pl_lrs_cfg: {interval: day}}"),
                 "interval 'day' is unknown"));
  CHECK(contains(phase1("new_lr_scheduler: {lr_scheduler_init: {class_path: ConstantLR}, init_pg_lrs: [fast]}"),
                 "entry 0 is no number"));
  CHECK(contains(phase1("new_lr_scheduler: {lr_scheduler_init: {class_path: ReduceLROnPlateau}}"), "monitor"));
  CHECK(contains(everywhere("{}"), "'lr_scheduler_init' is missing"));
  CHECK(contains(everywhere("{lr_scheduler_init: {class_path: ConstantLR}, init_pg_lrs: [0.1]}"), "init_pg_lrs"));
  CHECK(
      contains(everywhere("{lr_scheduler_init: {class_path: ReduceLROnPlateau, init_args: {min_lr: [1.0e-6, 1.0e-7]}}, "
                          "pl_lrs_cfg: {monitor: val_loss}}"),
               "min_lr is a list"));
  Script both = slow();
  both.config.reinit_lr_cfg = tree("lr_scheduler_init: {class_path: ConstantLR}");
  CHECK(
      contains(error_of<ConfigError>([&] { Run{both}; }), "reinit_lr_cfg is for schedules that are made of the model"));
  // Allowed, with a warning each.
  Run odd(
      slow(", new_lr_scheduler: {lr_scheduler_init: {class_path: ConstantLR, init_args: {optimizer: 1}}, pl_lrs_cfg: "
           "{intervall: epoch}}"));
  CHECK(odd.said.warned("'optimizer' in init_args is ignored"));
  CHECK(odd.said.warned("'intervall' is unknown and ignored; did you mean 'interval'"));
  auto untested = slow(", new_lr_scheduler: {lr_scheduler_init: {class_path: PolynomialLR}}");
  untested.config.allow_untested = true;
  Run allowed(untested);
  CHECK(allowed.go().depth.back() == 3);
}

TEST_CASE("an optimizer that cannot be replaced is refused before training", "[finetuning][reinit]") {
  Net net;
  torch::optim::SGD sgd(net->parameters(), 0.1);
  FinetuningScheduler::Config config;
  config.reinit_optim_cfg = tree("optimizer_init: {class_path: Adam}");
  Folder folder;
  config.log_dir = folder.path.string();
  config.logging_level = "off";
  CHECK(contains(error_of<ConfigError>([&] { FinetuningScheduler(config, net, sgd); }),
                 "std::shared_ptr<torch::optim::Optimizer>"));
}

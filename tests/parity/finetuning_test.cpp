// The runs that record_finetuning.py recorded, with the same settings, schedules and losses.
#include <fabric/helpers/lr/lr_scheduler_registry.h>

#include "tests/support/finetuning_trace.h"

using namespace finetuning_test;
using namespace fabric;

namespace {

Script script_of(const Tree& run) {
  Script script;
  Tree config = run.find("config") ? run.at("config") : Tree(Tree::Map{});
  if (const Tree* schedule = run.find("schedule")) config["ft_schedule"] = *schedule;
  if (const Tree* names = run.find("no_decay")) config["no_decay"] = *names;
  script.config = from_tree<FinetuningScheduler::Config>(config);
  script.early_stopping = !script.config.epoch_transitions_only;
  script.losses.clear();
  for (const Tree& loss : run.at("losses").as_list()) script.losses.push_back(loss.as_double());
  script.patience = static_cast<int>(run.at("patience").as_int());
  if (const Tree* epochs = run.find("max_epochs")) script.epochs = static_cast<int>(epochs->as_int());
  if (const Tree* kept = run.find("save_top_k")) script.save_top_k = static_cast<int>(kept->as_int());
  if (const Tree* rate = run.find("lr")) script.lr = rate->as_double();
  script.weight_decay = 0.01;
  script.only_phase0 = true;  // as a trainer that asks for the optimizer after freezing would have it
  const Tree* scheduler = run.find("scheduler");
  if (!scheduler) return script;
  const Tree name = scheduler->as_list()[0], arguments = scheduler->as_list()[1];
  script.config.lr_stepping.monitor = "val_loss";
  if (name.is_null())
    script.scheduler = nullptr;
  else if (name.as_string() == "inverse")
    script.scheduler = [](torch::optim::Optimizer& optimizer) {
      return std::make_unique<LambdaLR>(optimizer, [](std::int64_t epoch) { return 1.0 / (1 + epoch); });
    };
  else
    script.scheduler = [name, arguments](torch::optim::Optimizer& optimizer) {
      return make_lr_scheduler(name.as_string(), arguments, optimizer);
    };
  return script;
}

Ints ints(const Tree& list) {
  Ints out;
  for (const Tree& item : list.as_list()) out.push_back(static_cast<int>(item.as_int()));
  return out;
}

}  // namespace

TEST_CASE("the fine-tuning scheduler does what the Python package does", "[parity][finetuning]") {
  const Tree recorded = read_tree_file(FABRIC_PARITY_DATA "/finetuning.json");
  CHECK(recorded.as_map().size() >= 26);
  for (const auto& [name, entry] : recorded.as_map()) {
    const Tree& seen = entry.at("seen");
    Run run(script_of(entry.at("run")));
    run.go();
    INFO(name << "\n" << run.said.text());
    CHECK(run.depth == ints(seen.at("depth")));
    CHECK(run.thawed == ints(seen.at("thawed")));
    CHECK(run.states == ints(seen.at("states")));
    CHECK(run.best_depth == ints(seen.at("best_depth")));
    const auto& epochs = seen.at("lrs").as_list();
    REQUIRE(run.lrs.size() == epochs.size());
    for (std::size_t epoch = 0; epoch < epochs.size(); ++epoch) {
      Lrs expected;
      for (const Tree& rate : epochs[epoch].as_list()) expected.push_back(rate.as_double());
      INFO("epoch " << epoch << ": " << shown(run.lrs[epoch]) << "instead of " << shown(expected));
      CHECK(close(run.lrs[epoch], expected, 1e-9));
    }
    Ints sizes;
    for (auto& group : run.optimizer->param_groups()) sizes.push_back(static_cast<int>(group.params().size()));
    CHECK(sizes == ints(seen.at("groups").as_list().back()));
  }
}

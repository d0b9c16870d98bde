// The runs that record_finetuning_pairs.py recorded, in which one thing changes in phase 1 and another in phase 2; then
// the same runs resumed after each of their epochs.
#include <cmath>

#include <fabric/helpers/finetuning/param_groups_internal.h>
#include <fabric/helpers/lr/lr_scheduler_registry.h>
#include <fabric/helpers/optimizer_registry.h>
#include <fabric/state/tensors.h>

#include "tests/support/finetuning_trace.h"

using namespace finetuning_test;
using namespace fabric;

namespace {

class InverseLR : public LambdaLR {
 public:
  explicit InverseLR(torch::optim::Optimizer& optimizer)
      : LambdaLR(optimizer, [](std::int64_t epoch) { return 1.0 / (1 + static_cast<double>(epoch)); }) {}
  const char* name() const override { return "InverseLR"; }
};

Lrs numbers(const Tree& list) {
  Lrs out;
  for (const Tree& item : list.as_list()) out.push_back(item.is_null() ? std::nan("") : item.as_double());
  return out;
}

bool same(const Lrs& found, const Lrs& expected) {
  if (found.size() != expected.size()) return false;
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (std::isnan(found[i]) != std::isnan(expected[i])) return false;
    if (!std::isnan(found[i]) && std::abs(found[i] - expected[i]) > 1e-9 * std::abs(expected[i])) return false;
  }
  return true;
}

std::string text(const Tree& run, const char* key) {
  const Tree* found = run.find(key);
  return found ? write_json(*found) : "";
}

Script script_of(const Tree& file, const Tree& run) {
  Script script;
  Tree phases = file.at("phases");
  for (const auto& [phase, key] : {std::pair("1", "one"), std::pair("2", "two")})
    for (const auto& [name, value] : file.at("features").at(run.at(key).as_string()).at(phase).as_map())
      phases[phase][name] = value;
  script.config.ft_schedule = phases;
  script.config.epoch_transitions_only = true;
  script.config.restore_best = run.find("restored") != nullptr;
  for (const char* key : {"first", "one", "two"})
    if (run.at(key).as_string() == "lambda") script.config.apply_lambdas_new_pgs = true;
  if (const Tree* parts = run.find("no_decay"))
    for (const Tree& part : parts->as_list()) script.config.no_decay.push_back(part.as_string());
  const auto& first = file.at("first").at(run.at("first").as_string()).as_list();
  script.config.lr_stepping = from_tree<LRStepping>(first[2]);
  script.scheduler = [name = first[0].as_string(), arguments = first[1]](torch::optim::Optimizer& optimizer) {
    return make_lr_scheduler(name, arguments, optimizer);
  };
  script.losses = numbers(file.at("losses"));
  script.early_stopping = false;
  script.checkpoints = script.config.restore_best;
  script.save_top_k = -1;
  script.epochs = 8;
  script.steps = 3;
  script.lr = 0.05;
  script.weight_decay = 0.1;
  script.only_phase0 = script.config.no_decay.empty();
  return script;
}

/// A group's options and names by phase, as recorded.
void check_phase(Run& run, const Tree& seen) {
  auto& optimizer = run.schedule->optimizer();
  Lrs decays;
  Names names;
  for (const auto& group : param_groups::records(optimizer, ModelParameters(*run.net), {})) {
    decays.push_back(group.weight_decay);
    std::string all;
    for (const auto& name : group.params) all += (all.empty() ? "" : " ") + name.substr(std::string("model.").size());
    names.push_back(all);
  }
  CHECK(optimizer_class(optimizer) == seen.at("optimizer").as_string());
  CHECK(same(decays, numbers(seen.at("weight_decay"))));
  const auto& lists = seen.at("params").as_list();
  REQUIRE(names.size() == lists.size());
  for (std::size_t i = 0; i < names.size(); ++i) CHECK(names[i] == lists[i].as_string());
  auto initial = *shared_initial_lrs(optimizer);
  initial.resize(names.size(), std::nan(""));
  INFO("initial " << shown(initial) << "instead of " << shown(numbers(seen.at("initial"))));
  CHECK(same(initial, numbers(seen.at("initial"))));
  if (!seen.at("base").as_list().empty()) {  // a plateau has none
    INFO("base " << shown(run.lr->base_lrs()) << "instead of " << shown(numbers(seen.at("base"))));
    CHECK(same(run.lr->base_lrs(), numbers(seen.at("base"))));
  }
}

void check_run(Run& run, const Tree& recorded, int first_epoch) {
  run.after_transition = [&](int) {
    check_phase(run, recorded.at("phases").as_list()[static_cast<std::size_t>(run.schedule->curr_depth())]);
  };
  run.go(first_epoch);
  const auto& epochs = recorded.at("lrs").as_list();
  REQUIRE(run.lrs.size() + static_cast<std::size_t>(first_epoch) == epochs.size());
  for (std::size_t i = 0; i < run.lrs.size(); ++i) {
    const auto expected = numbers(epochs[static_cast<std::size_t>(first_epoch) + i]);
    INFO("epoch " << first_epoch + static_cast<int>(i) << ": " << shown(run.lrs[i]) << "instead of "
                  << shown(expected));
    CHECK(same(run.lrs[i], expected));
  }
}

void check_pair(const Script& script, const Tree& recorded) {
  Run whole(script);
  std::vector<Value> saved;
  whole.after_epoch = [&](int) {
    saved.push_back(collect_state(whole.state(), StateAccess::plain()).values);
    for_each_tensor(saved.back(), [](at::Tensor& tensor) { tensor = tensor.clone(); });
  };
  check_phase(whole, recorded.at("phases").as_list()[0]);
  check_run(whole, recorded, 0);
  for (int epoch = 0; epoch + 1 < script.epochs; ++epoch) {
    INFO("resumed after epoch " << epoch);
    Run second(script, Net(), whole.dirpath);
    State state = second.state();
    restore_state(state, saved[static_cast<std::size_t>(epoch)], StateAccess::plain());
    check_run(second, recorded, epoch + 1);
    auto found = second.net->parameters(), expected = whole.net->parameters();
    for (std::size_t i = 0; i < found.size(); ++i) CHECK(torch::equal(found[i], expected[i]));
  }
}

}  // namespace

TEST_CASE("two changes in consecutive phases, whole and resumed after each epoch", "[parity][finetuning][resume]") {
  register_lr_scheduler(
      "InverseLR",
      [](torch::optim::Optimizer& optimizer, const Tree&) { return std::make_unique<InverseLR>(optimizer); }, true);
  const Tree file = read_tree_file(FABRIC_PARITY_DATA "/finetuning_pairs.json");
  const auto& runs = file.at("runs").as_list();
  CHECK(runs.size() >= 130);
  for (const Tree& run : runs) {
    INFO(text(run, "first") << " first, then " << text(run, "one") << ", then " << text(run, "two")
                            << (run.find("no_decay") ? ", no_decay" : "")
                            << (run.find("restored") ? ", restored" : ""));
    check_pair(script_of(file, run), run);
  }
}

#include <fabric/helpers/early_stopping.h>

#include <torch/torch.h>

#include <cmath>

#include <fabric/base/log.h>
#include <fabric/fabric.h>

#include "tests/support/group_of_ranks.h"
#include "tests/support/ranks.h"

using Catch::Contains;
using fabric::EarlyStopping;
using fabric::Metrics;
using fabric::Value;
using Reason = EarlyStopping::Reason;

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
const double kNan = std::nan("");

/// One check per epoch until it stops; returns the last epoch that ran.
int run(EarlyStopping& stop, const std::vector<double>& losses) {
  for (int epoch = 0; epoch < static_cast<int>(losses.size()); ++epoch)
    if (stop.check({{"val_loss", losses[epoch]}}, epoch)) return epoch;
  return static_cast<int>(losses.size()) - 1;
}

template <class Action>
std::string error_of(Action&& action) {
  try {
    action();
  } catch (const fabric::Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("A metric that is not finite stops at once", "[early_stopping]") {
  for (double bad : {kInf, -kInf, kNan}) {
    EarlyStopping stop({.monitor = "val_loss"});
    CHECK(run(stop, {4, 3, bad, 1}) == 2);
    CHECK(stop.stopped_epoch() == 2);
    CHECK(stop.reason() == Reason::non_finite_metric);
    CHECK(stop.best_score() == 3);
    CHECK_THAT(stop.message(), Contains("not finite") && Contains("3.000"));
  }
}

TEST_CASE("Without check_finite NaN is a check without improvement", "[early_stopping]") {
  EarlyStopping stop({.monitor = "val_loss", .patience = 2, .check_finite = false});
  CHECK(run(stop, {4, kNan, 3, kNan, kNan, 1}) == 4);
  CHECK(stop.reason() == Reason::patience_exhausted);
  CHECK(stop.best_score() == 3);
}

TEST_CASE("Patience that runs out stops", "[early_stopping]") {
  EarlyStopping stop({.monitor = "val_loss", .patience = 3});
  CHECK(run(stop, {8, 4, 2, 3, 4, 5, 8, 10}) == 5);
  CHECK(stop.stopped_epoch() == 5);
  CHECK(stop.reason() == Reason::patience_exhausted);
  CHECK(stop.wait_count() == 3);
  CHECK(stop.best_score() == 2);
  CHECK_THAT(stop.message(), Contains("did not improve in the last 3 checks") && Contains("2.000"));
}

TEST_CASE("Patience counts checks, with or without an epoch given", "[early_stopping]") {
  EarlyStopping twice_an_epoch({.monitor = "val_loss", .patience = 3});
  for (double loss : {5., 6., 6., 6.}) twice_an_epoch.check({{"val_loss", loss}});
  CHECK(twice_an_epoch.stopped());
  CHECK(twice_an_epoch.stopped_epoch() == 3);
  EarlyStopping least({.monitor = "val_loss", .patience = 0});
  CHECK(run(least, {5, 4, 4, 3}) == 2);
}

TEST_CASE("A value beyond the stopping threshold stops", "[early_stopping]") {
  EarlyStopping stop({.monitor = "val_loss", .stopping_threshold = 2.9});
  CHECK(run(stop, {9, 8, 7, 6, 5, 6, 4, 3, 2}) == 8);
  CHECK(stop.stopped_epoch() == 8);
  CHECK(stop.reason() == Reason::stopping_threshold);
  CHECK(stop.best_score() == 3);  // the value that stopped is not judged further
  CHECK_THAT(stop.message(), Contains("val_loss = 2 < 2.9"));
  EarlyStopping exactly({.monitor = "val_loss", .stopping_threshold = 3});
  CHECK_FALSE(exactly.check({{"val_loss", 3}}));
  EarlyStopping largest({.monitor = "val_loss", .mode = "max", .stopping_threshold = 0.9});
  CHECK(run(largest, {0.5, 0.9, 0.95}) == 2);
}

TEST_CASE("A value beyond the divergence threshold stops", "[early_stopping]") {
  EarlyStopping stop({.monitor = "val_loss", .divergence_threshold = 10});
  CHECK(run(stop, {9, 10, 11, 1}) == 2);
  CHECK(stop.reason() == Reason::divergence_threshold);
  CHECK_THAT(stop.message(), Contains("val_loss = 11 > 10"));
  EarlyStopping largest({.monitor = "val_loss", .mode = "max", .divergence_threshold = 0.1});
  CHECK(run(largest, {0.5, 0.1, 0.05}) == 2);
  CHECK_THAT(largest.message(), Contains("< 0.1"));
}

TEST_CASE("The first rule that applies decides", "[early_stopping]") {
  EarlyStopping stop({.monitor = "val_loss", .stopping_threshold = 1, .divergence_threshold = 0.5});
  stop.check({{"val_loss", 0.7}});
  CHECK(stop.reason() == Reason::stopping_threshold);
  EarlyStopping infinite({.monitor = "val_loss", .stopping_threshold = 1});
  infinite.check({{"val_loss", -kInf}});
  CHECK(infinite.reason() == Reason::non_finite_metric);
  EarlyStopping unchecked({.monitor = "val_loss", .check_finite = false, .stopping_threshold = 1});
  unchecked.check({{"val_loss", -kInf}});
  CHECK(unchecked.reason() == Reason::stopping_threshold);
}

TEST_CASE("An improvement is larger than min_delta, whatever its sign", "[early_stopping]") {
  for (double delta : {0.1, -0.1}) {
    for (double best : {0.8, 0.3, 1.0, 100.0}) {
      EarlyStopping stop({.monitor = "val_loss", .min_delta = delta, .patience = 9});
      stop.check({{"val_loss", best}});
      stop.check({{"val_loss", best - 0.1}});
      CHECK(stop.wait_count() == 1);
      CHECK(stop.best_score() == best);
      stop.check({{"val_loss", best - 0.1001}});
      CHECK(stop.wait_count() == 0);
    }
    EarlyStopping largest({.monitor = "val_loss", .min_delta = delta, .mode = "max"});
    run(largest, {0.7, 0.8});
    CHECK(largest.wait_count() == 1);
    largest.check({{"val_loss", 0.81}});
    CHECK(largest.best_score() == 0.81);
  }
  EarlyStopping any_gain({.monitor = "val_loss"});
  run(any_gain, {1, std::nextafter(1.0, 0.0), std::nextafter(1.0, 0.0)});
  CHECK(any_gain.wait_count() == 1);
  CHECK(any_gain.best_score() == std::nextafter(1.0, 0.0));
}

TEST_CASE("Messages tell of improvements", "[early_stopping]") {
  EarlyStopping stop({.monitor = "val_loss", .min_delta = 0.01, .verbose = true});
  stop.check({{"val_loss", 0.5}});
  CHECK(stop.message() == "val_loss improved. New best score: 0.500");
  stop.check({{"val_loss", 0.25}});
  CHECK(stop.message() == "val_loss improved by 0.250 (min_delta = 0.010). New best score: 0.250");
  stop.check({{"val_loss", 0.25}});
  CHECK(stop.message().empty());
}

TEST_CASE("A missing metric is an error that lists what there is, or is left out", "[early_stopping]") {
  EarlyStopping strict({.monitor = "val_loss"});
  CHECK_THROWS_WITH(strict.check({{"val_los", 1}, {"acc", 1}}),
                    Contains("'val_loss'") && Contains("'val_los'") && Contains("acc") && Contains("strict"));
  CHECK_THROWS_AS(strict.check({}), fabric::MisuseError);
  EarlyStopping lenient({.monitor = "val_loss", .patience = 1, .verbose = true, .strict = false});
  CHECK_FALSE(lenient.check({{"val_loss", 1}}));
  CHECK_FALSE(lenient.check({{"acc", 1}}));
  CHECK(lenient.wait_count() == 0);
  CHECK(lenient.check({{"val_loss", 1}}));
}

TEST_CASE("Settings that cannot be are refused", "[early_stopping]") {
  CHECK_THROWS_WITH(EarlyStopping({}), Contains("monitor must be given"));
  CHECK_THROWS_WITH(EarlyStopping({.monitor = "x", .mode = "mix"}), Contains("'mix'") && Contains("'min'"));
  CHECK_THROWS_WITH(EarlyStopping({.monitor = "x", .patience = -1}), Contains("0 or more"));
  CHECK_THROWS_WITH(EarlyStopping({.monitor = "x", .stopping_threshold = kNan}), Contains("NaN"));
  CHECK_THROWS_AS(fabric::from_tree<EarlyStopping::Config>(fabric::Tree::Map{{"monitr", "x"}}), fabric::ConfigError);
}

TEST_CASE("A loop that names the moments of its checks gets one a round", "[early_stopping]") {
  using Moment = EarlyStopping::Moment;
  for (std::optional<bool> at_train_end : {std::optional<bool>(), std::optional(false), std::optional(true)}) {
    EarlyStopping stop({.monitor = "loss", .patience = 1, .check_on_train_epoch_end = at_train_end});
    auto counted = [&](Moment moment) {
      double before = stop.best_score();
      stop.check({{"loss", std::isinf(before) ? 1 : before / 2}}, 0, moment);
      return stop.best_score() != before;
    };
    CHECK(counted(Moment::validation_end) == !at_train_end.value_or(false));
    CHECK(counted(Moment::train_epoch_end) == at_train_end.value_or(false));
    CHECK(counted(Moment::any));
  }
}

TEST_CASE("In a phase that is not the last, patience completes the phase", "[early_stopping]") {
  EarlyStopping stop({.monitor = "val_loss", .patience = 2});
  CHECK(stop.final_phase());
  stop.set_final_phase(false);
  run(stop, {3, 4, 4});
  CHECK_FALSE(stop.stopped());
  CHECK(stop.phase_complete());
  CHECK(stop.wait_count() == 0);
  CHECK(stop.reason() == Reason::not_stopped);
  CHECK_THAT(stop.message(), Contains("The phase is complete"));
  stop.check({{"val_loss", 1}});  // an improvement before the next phase does not undo it
  CHECK(stop.phase_complete());
  stop.check({{"val_loss", 2}});
  stop.reset_phase();
  CHECK_FALSE(stop.phase_complete());
  CHECK(stop.wait_count() == 0);
  CHECK(stop.best_score() == 1);  // a new phase must beat the best of all before
  stop.set_final_phase(true);
  CHECK(run(stop, {2, 2, 0}) == 1);
  CHECK(stop.reason() == Reason::patience_exhausted);
}

TEST_CASE("Everything but patience stops from any phase", "[early_stopping]") {
  EarlyStopping stop({.monitor = "val_loss", .patience = 1, .stopping_threshold = 0.5, .divergence_threshold = 9});
  for (double end : {kNan, 0.4, 10.0}) {
    EarlyStopping fresh(stop.config());
    fresh.set_final_phase(false);
    CHECK(run(fresh, {3, end, 1}) == 1);
    CHECK(fresh.stopped());
    CHECK_FALSE(fresh.phase_complete());
  }
}

TEST_CASE("It stays stopped until it is told to go on", "[early_stopping]") {
  EarlyStopping stop({.monitor = "val_loss", .patience = 1});
  run(stop, {3, 3});
  CHECK(stop.check({{"val_loss", 1}}, 7));
  CHECK(stop.stopped_epoch() == 1);
  CHECK(stop.best_score() == 3);
  stop.resume();
  CHECK_FALSE(stop.check({{"val_loss", 1}}));
  CHECK(stop.stopped_epoch() == -1);
}

TEST_CASE("Its state goes on where it was, phase and patience included", "[early_stopping]") {
  EarlyStopping first({.monitor = "val_loss", .patience = 2});
  first.set_final_phase(false);
  run(first, {3, 4, 5, 4});
  EarlyStopping second({.monitor = "val_loss", .patience = 7});
  second.load_state_dict(first.state_dict());
  CHECK(second.patience() == 2);
  CHECK(second.phase_complete());
  CHECK_FALSE(second.final_phase());
  CHECK(second.wait_count() == 1);
  CHECK(second.best_score() == 3);
  CHECK(second.message() == first.message());
  second.set_final_phase(true);
  second.check({{"val_loss", 8}});
  EarlyStopping third({.monitor = "val_loss"});
  third.load_state_dict(second.state_dict());
  CHECK(third.stopped());
  CHECK(third.reason() == Reason::patience_exhausted);
  CHECK(third.stopped_epoch() == second.stopped_epoch());

  EarlyStopping unused({.monitor = "val_loss", .mode = "max"});
  EarlyStopping reader({.monitor = "val_loss", .mode = "max"});
  reader.load_state_dict(unused.state_dict());
  CHECK(reader.best_score() == -kInf);
}

TEST_CASE("A damaged state changes nothing", "[early_stopping]") {
  EarlyStopping stop({.monitor = "val_loss"});
  run(stop, {3, 4});
  Value state = stop.state_dict();
  state["stopping_reason"] = 9;
  CHECK_THROWS_AS(stop.load_state_dict(state), fabric::CheckpointKeyError);
  state.as_map().erase("best_score");
  CHECK_THROWS_WITH(stop.load_state_dict(state), Contains("best_score"));
  CHECK(stop.wait_count() == 1);
  CHECK(stop.best_score() == 3);
}

TEST_CASE("Its state survives a checkpoint, infinities too", "[early_stopping]") {
  auto path = std::filesystem::temp_directory_path() / ("fabric_stop_" + std::to_string(getpid()) + ".safetensors");
  fabric::Fabric fabric({.accelerator = "cpu", .devices = 1});
  EarlyStopping unused({.monitor = "val_loss"}), reader({.monitor = "val_loss"});
  fabric.save(path, {{"stop", unused}});
  run(reader, {1, 2});
  fabric::State state = {{"stop", reader}};
  fabric.load(path, state);
  CHECK(reader.best_score() == kInf);
  CHECK(reader.wait_count() == 0);
  std::filesystem::remove(path);
}

RANKS_TEST("Two ranks stop together, as one does alone", "[early_stopping]", 2) {
  auto group = ranks::group_from_env();
  EarlyStopping threshold({.monitor = "val_loss", .stopping_threshold = 2.9}, group);
  RANK_CHECK(run(threshold, {9, 8, 7, 6, 5, 6, 4, 3, 2}) == 8);
  EarlyStopping patience({.monitor = "val_loss"}, group);
  RANK_CHECK(run(patience, {8, 4, 2, 3, 4, 5, 8, 10}) == 5);
  RANK_CHECK(patience.reason() == Reason::patience_exhausted);
  EarlyStopping infinite({.monitor = "val_loss"}, group);
  infinite.set_final_phase(false);
  RANK_CHECK(run(infinite, {4, 3, kInf, 1}) == 2);
  RANK_CHECK(infinite.reason() == Reason::non_finite_metric && infinite.stopped());
}

RANKS_TEST("One rank that wants to stop stops all, with its reason", "[early_stopping]", 2) {
  auto group = ranks::group_from_env();
  EarlyStopping not_a_number({.monitor = "val_loss"}, group);
  RANK_CHECK(run(not_a_number, rank == 1 ? std::vector<double>{2, kNan, 1} : std::vector<double>{2, 1, 1}) == 1);
  RANK_CHECK(not_a_number.reason() == Reason::non_finite_metric);
  RANK_CHECK(not_a_number.message().find("nan") != std::string::npos);
  EarlyStopping patience({.monitor = "val_loss", .patience = 2}, group);
  RANK_CHECK(run(patience, rank == 0 ? std::vector<double>{2, 3, 3, 3} : std::vector<double>{2, 1, 0.5, 0}) == 2);
  RANK_CHECK(patience.reason() == Reason::patience_exhausted && patience.stopped_epoch() == 2);
  RANK_CHECK(patience.message().find("2.000") != std::string::npos);

  EarlyStopping phase({.monitor = "val_loss", .patience = 2}, group);
  phase.set_final_phase(false);
  run(phase, rank == 1 ? std::vector<double>{2, 3, 3} : std::vector<double>{2, 1, 0.5});
  RANK_CHECK(phase.phase_complete() && !phase.stopped() && phase.wait_count() == 0);
}

RANKS_TEST("A metric that is missing on one rank is an error on both, or left out on both", "[early_stopping]", 2) {
  auto group = ranks::group_from_env();
  const Metrics given = rank == 1 ? Metrics{{"loss", 1}} : Metrics{{"val_loss", 1}};
  EarlyStopping strict({.monitor = "val_loss"}, group);
  auto text = error_of([&] { strict.check(given); });
  RANK_CHECK(text.find("missing on rank 1 of 2") != std::string::npos);
  RANK_CHECK(error_of([&] { strict.check({{"acc", 1}}); }).find("acc") != std::string::npos);
  RANK_CHECK(!strict.check({{"val_loss", 1}}));  // the group still works
  EarlyStopping lenient({.monitor = "val_loss", .patience = 1, .strict = false}, group);
  RANK_CHECK(!lenient.check({{"val_loss", 1}}) && !lenient.check(given) && lenient.wait_count() == 0);
  RANK_CHECK(lenient.check({{"val_loss", 1}}));
}

TEST_CASE("Ranks whose metrics differ are warned once", "[early_stopping]") {
  auto outcomes = ranks::run("differing metrics", {.world_size = 2});
  std::string output;
  for (const auto& outcome : outcomes) {
    CHECK(outcome.exit_code == 0);
    output += outcome.output;
  }
  const std::string warning = "'val_loss' differs between the ranks";
  auto first = output.find(warning);
  REQUIRE(first != std::string::npos);
  CHECK(output.find(warning, first + 1) == std::string::npos);
  CHECK_THAT(output, Contains("the ranks disagree; all follow rank 0"));
}
RANKS_BODY("differing metrics") {
  fabric::log::set_rank(rank);
  EarlyStopping stop({.monitor = "val_loss", .patience = 2}, ranks::group_from_env());
  RANK_CHECK(run(stop, rank == 0 ? std::vector<double>{2, 3, 3, 3} : std::vector<double>{2, 1, 0.5, 0}) == 2);
}

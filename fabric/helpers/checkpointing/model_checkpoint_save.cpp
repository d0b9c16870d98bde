#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <utility>

#include <fabric/base/error.h>
#include <fabric/base/log.h>
#include <fabric/base/nearest_name.h>
#include <fabric/helpers/checkpointing/checkpoint_files_internal.h>
#include <fabric/helpers/checkpointing/checkpoint_name_internal.h>
#include <fabric/helpers/checkpointing/model_checkpoint_internal.h>

namespace fabric {
namespace {

namespace fs = std::filesystem;

std::string score_text(double value) {
  char text[64];
  std::snprintf(text, sizeof text, "%.5g", value);
  return text;
}

[[noreturn]] void fail_about_metric(const std::string& monitor, const Metrics& metrics) {
  std::vector<std::string> names;
  for (const auto& [name, value] : metrics) names.push_back(name);
  const std::string which = "ModelCheckpoint: the metric '" + monitor + "', which ranks the files, is ";
  if (metrics.contains(monitor))
    throw ConfigError(which + "there on this rank but not on every rank; give all ranks the same metrics");
  throw ConfigError(which + "not among the metrics" + did_you_mean(monitor, names));
}

Value paths(const std::vector<fs::path>& list) {
  Value::List out;
  for (const auto& path : list) out.emplace_back(path.string());
  return out;
}

std::vector<fs::path> paths(const Value& list) {
  std::vector<fs::path> out;
  for (const auto& path : list.as_list()) out.emplace_back(path.as_string());
  return out;
}

}  // namespace

// --- decisions

std::vector<double> ModelCheckpoint::Impl::gather_scores(const Metrics& metrics) const {
  auto mine = metrics.find(*config.monitor);
  std::vector<double> scores;
  bool differ = false;
  for (const auto& value : peers.gather(mine == metrics.end() ? Value() : Value(mine->second))) {
    if (value.is_null()) return {};
    scores.push_back(value.as_double());
    differ |= scores.back() != scores.front() && !(std::isnan(scores.back()) && std::isnan(scores.front()));
  }
  if (differ)
    log::warn_once("ModelCheckpoint: '" + *config.monitor +
                   "' differs between the ranks. A file is kept only where every rank's value is good enough, under "
                   "the value of rank 0; reduce the metric over the ranks first (fabric::MeanMetric)");
  return scores;
}

fs::path ModelCheckpoint::Impl::name_file(const Metrics& metrics, int version, const std::string& pattern) const {
  std::string name = format_checkpoint_name(pattern.empty() ? "{epoch}-{step}" : pattern, metrics, epoch, step,
                                            config.auto_insert_metric_name);
  if (version > 0) name += "-v" + std::to_string(version);
  return (folder / (name + config.extension)).lexically_normal();
}

ModelCheckpoint::Impl::Plan ModelCheckpoint::Impl::plan(Cause cause, const std::vector<double>& scores,
                                                        const Metrics& metrics) {
  Plan plan;
  CheckpointRecords after = records;
  for (const auto& known : records.best_k)
    if (!checkpoint_exists(known.path)) plan.gone.push_back(known.path), after.drop(known.path, config.save_top_k);

  plan.ranked =
      config.save_top_k != 0 && (cause == Cause::epoch || cause == Cause::step) &&
      (!config.monitor || !scores.empty()) &&
      std::all_of(scores.begin(), scores.end(), [&](double score) { return after.accepts(score, config.save_top_k); });
  bool counter = config.enable_version_counter || cause == Cause::emergency;
  if (plan.ranked || cause == Cause::emergency) {
    if (plan.ranked && config.monitor) plan.remove = after.evict_for_new(config.save_top_k);
    if (plan.ranked && !config.monitor && config.save_top_k == 1 && !records.best.path.empty())
      plan.remove = {records.best.path};
    auto evicted = [&](const fs::path& path) {
      return !counter || std::find(plan.remove.begin(), plan.remove.end(), path) != plan.remove.end();
    };
    plan.file = first_free_path([&](int version) { return name_file(metrics, version, config.filename); }, evicted);
  }

  plan.fresh = !plan.file.empty() && !checkpoint_exists(plan.file);
  bool late_copy = cause == Cause::step && config.save_last.mode == SaveLast::Mode::copy;
  bool last = config.save_last && (!plan.file.empty() || late_copy || config.save_top_k == 0 ||
                                   config.save_last.mode == SaveLast::Mode::always || cause == Cause::train_end);
  if (last) {
    plan.last = first_free_path([&](int version) { return name_file(metrics, version, config.last_filename); },
                                [&](const fs::path& path) { return !counter || path == records.last_path; });
    if (!records.last_path.empty()) plan.remove.push_back(records.last_path);
  }
  auto still_kept = [&](const fs::path& path) {
    return std::any_of(after.best_k.begin(), after.best_k.end(), [&](const auto& known) { return known.path == path; });
  };
  std::erase_if(plan.remove, [&](const fs::path& path) { return still_kept(path) || !may_remove(path, plan); });
  return plan;
}

bool ModelCheckpoint::Impl::may_remove(const fs::path& path, const Plan& plan) {
  if (path == plan.file || path == plan.last) return false;
  auto relative = path.lexically_normal().lexically_relative(folder);
  if (relative.empty() || *relative.begin() == ".." || relative == ".") return false;
  if (!protected_paths.contains(path)) return true;
  postponed.insert(path);
  return false;
}

// Once, on rank 0.
void ModelCheckpoint::Impl::look_at_folder() {
  if (std::exchange(looked, true)) return;
  remove_leftovers(folder, config.extension);
  if (loaded || config.save_top_k == 0) return;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error))
    if (entry.path().extension() == config.extension) {
      log::warn("the folder '" + folder.string() + "' holds checkpoints already, such as '" +
                entry.path().filename().string() + "'; they stay, and do not count among those to keep");
      return;
    }
}

// --- the save

bool ModelCheckpoint::Impl::save(Cause cause, const Metrics& metrics, const StateSource& state) {
  std::vector<double> scores;
  if (config.save_top_k != 0 && config.monitor && (cause == Cause::epoch || cause == Cause::step)) {
    scores = gather_scores(metrics);
    if (scores.empty() && validated) fail_about_metric(*config.monitor, metrics);
    if (scores.empty() && !std::exchange(warned_about_metric, true))
      log::rank_zero_warn("ModelCheckpoint: the metric '" + *config.monitor +
                          "' is not there yet, so no file is kept; it is an error once validation has run");
  }
  try {
    settle();
  } catch (const std::exception& error) {
    if (cause != Cause::emergency) throw;
    log::rank_zero_warn(error.what());  // what is to be saved now matters more
  }
  Value made = on_rank_zero(peers, "ModelCheckpoint's choice of files", [&]() -> Value {
    look_at_folder();
    Plan mine = plan(cause, scores, metrics);
    return Value::List{mine.file.string(), mine.last.string(), mine.ranked,
                       mine.fresh,         paths(mine.gone),   paths(mine.remove)};
  });
  const auto& parts = made.as_list();
  Plan plan{parts[0].as_string(), parts[1].as_string(), parts[2].as_bool(),
            parts[3].as_bool(),   paths(parts[4]),      paths(parts[5])};
  for (const auto& path : plan.gone) {
    records.drop(path, config.save_top_k);
    log::rank_zero_warn("the checkpoint '" + path.string() + "' is no longer there; it does not count any more");
  }
  if (config.verbose && !scores.empty() && !plan.ranked)
    log::rank_zero_info("epoch " + std::to_string(epoch) + ", step " + std::to_string(step) + ": " + *config.monitor +
                        " = " + score_text(scores[0]) + " is not among the best " + std::to_string(config.save_top_k));
  if (plan.first().empty()) return false;

  Pending now{.before = records, .event = {}};
  try {
    now.event = enter(plan, scores.empty() ? std::nullopt : std::optional(scores[0]));
    for (auto* observer : observers) observer->before_save(now.event);
    write(plan, state, !config.async || cause == Cause::emergency);
  } catch (...) {
    undo(now);
    throw;
  }
  if (config.async && cause != Cause::emergency) pending = std::move(now);
  return true;
}

// From here on paths and scores are those that the file states.
CheckpointEvent ModelCheckpoint::Impl::enter(const Plan& plan, std::optional<double> score) {
  CheckpointEvent event{.path = plan.first(), .top_k = plan.ranked};
  if (plan.ranked && config.monitor) {
    records.evict_for_new(config.save_top_k);
    records.admit(plan.file, *score, config.save_top_k);
  } else if (plan.ranked) {
    records.best = {plan.file};
  }
  if (!plan.last.empty()) records.last_path = plan.last;
  records.newest_path = plan.first();
  records.saved_step = step;
  event.new_best = plan.ranked && records.best.path == plan.file;
  if (config.verbose)
    log::rank_zero_info(
        "epoch " + std::to_string(epoch) + ", step " + std::to_string(step) + ": saving '" + event.path.string() + "'" +
        (plan.ranked && config.monitor
             ? ", " + *config.monitor + " = " + score_text(*score) + ", best " + score_text(records.best.score)
             : ""));
  return event;
}

State ModelCheckpoint::Impl::narrowed(State state) const {
  if (!config.save_weights_only) return state;
  State kept;
  for (auto& [key, entry] : state)
    if (entry.module() || entry.value()) kept.append(key, entry);
  return kept;
}

void ModelCheckpoint::Impl::write(const Plan& plan, const StateSource& source, bool at_once) {
  State state;
  // The loop's own function first: where it throws on one rank, the others must not wait in the save.
  peers.run_together(
      "the state for a ModelCheckpoint", [&] { state = narrowed(source()); }, ErrorKind::checkpoint);
  saving = target(
      plan.first(), state,
      {.async = !at_once, .copy_beside = config.copy_beside && !at_once, .replaces_link = true, .then = [this, plan] {
         arrange(plan);
       }});
  if (at_once) saving.reset();
}

// The order matters: whenever a kill comes, everything that a name leads to is whole.
void ModelCheckpoint::Impl::arrange(const Plan& plan) const {
  try {
    if (!plan.file.empty() && !plan.last.empty())
      (config.save_last.mode == SaveLast::Mode::link ? link_checkpoint : copy_checkpoint)(plan.file, plan.last);
  } catch (...) {
    if (plan.fresh) remove_checkpoint(plan.file);  // the save failed as a whole
    throw;
  }
  for (const auto& path : plan.remove) {
    try {
      remove_checkpoint(path);
    } catch (const CheckpointError& error) {
      log::warn(std::string(error.what()) + ". The file stays");
    }
  }
}

void ModelCheckpoint::Impl::undo(const Pending& failed) {
  records = failed.before;
  if (failed.event.path.empty()) return;
  for (auto* observer : observers) observer->save_failed(failed.event);
}

void ModelCheckpoint::Impl::settle() {
  if (!pending) return;
  Pending was = *std::exchange(pending, std::nullopt);
  try {
    std::exchange(saving, nullptr)->wait();
  } catch (const Error& error) {
    undo(was);
    throw_error(error.kind(), "the checkpoint '" + was.event.path.string() +
                                  "', which was being written beside the training, is lost: " + error.what());
  } catch (...) {
    undo(was);
    throw;
  }
}

// Only rank 0 knows whether its thread has ended, so several ranks learn it where they wait for it.
void ModelCheckpoint::Impl::settle_if_ended() {
  if (pending && peers.is_alone() && saving->ended()) settle();
}

void ModelCheckpoint::Impl::save_alone(const StateSource& source) {
  if (peers.rank() != 0 || step <= 0) return;
  saving.reset();  // waits for what this rank writes
  // A save that failed, or whose parts nobody finished, left nothing of this step.
  if (auto was = std::exchange(pending, std::nullopt); was && !checkpoint_exists(was->event.path))
    records = was->before;
  if (counts_steps && step == records.saved_step) return;
  Pending now{.before = records, .event = {}};
  try {
    Plan mine = plan(Cause::emergency, {}, {});
    now.event = enter(mine, {});
    for (auto* observer : observers) observer->before_save(now.event);
    target(mine.first(), narrowed(source()), {.alone = true, .replaces_link = true, .then = [&] { arrange(mine); }});
    log::info("the state was saved to '" + mine.first().string() + "'");
  } catch (const std::exception& error) {
    undo(now);
    log::error(std::string("the state could not be saved: ") + error.what());
  }
}

}  // namespace fabric

#include <fabric/helpers/finetuning/finetuning_schedule.h>

#include <algorithm>
#include <charconv>
#include <unordered_set>

#include <fabric/base/atomic_file_internal.h>
#include <fabric/base/error.h>
#include <fabric/base/tree_io.h>
#include <fabric/helpers/finetuning/model_parameters.h>

namespace fabric {
namespace {

Tree list_of(const std::vector<std::string>& names) { return Tree::List(names.begin(), names.end()); }

Tree::Map phase_tree(const FinetuningPhase& phase) {
  Tree::Map out;
  out["params"] = list_of(phase.params);
  if (phase.max_transition_epoch >= 0) out["max_transition_epoch"] = phase.max_transition_epoch;
  if (phase.max_transition_step >= 0) out["max_transition_step"] = phase.max_transition_step;
  if (phase.lr) out["lr"] = *phase.lr;
  if (phase.scale_lr) out["scale_lr"] = *phase.scale_lr;
  if (!phase.freeze.empty()) out["freeze"] = list_of(phase.freeze);
  if (!phase.new_optimizer.is_null()) out["new_optimizer"] = phase.new_optimizer;
  if (!phase.new_lr_scheduler.is_null()) out["new_lr_scheduler"] = phase.new_lr_scheduler;
  return out;
}

}  // namespace

std::vector<std::string> FinetuningSchedule::thawed_at(std::size_t depth) const {
  std::vector<std::string> names;
  for (std::size_t i = 0; i <= depth && i < phases.size(); ++i) {
    std::unordered_set<std::string> frozen(phases[i].freeze.begin(), phases[i].freeze.end());
    std::erase_if(names, [&](const std::string& name) { return frozen.contains(name); });
    names.insert(names.end(), phases[i].params.begin(), phases[i].params.end());
  }
  return names;
}

Tree FinetuningSchedule::to_tree() const {
  Tree::Map out;
  for (std::size_t i = 0; i < phases.size(); ++i) out.append(std::to_string(i), phase_tree(phases[i]));
  return out;
}

FinetuningSchedule implicit_schedule(const ModelParameters& parameters) {
  FinetuningSchedule schedule;
  const auto& names = parameters.names();
  for (std::size_t i = names.size(); i > 0; i -= std::min<std::size_t>(i, 2)) {
    auto& phase = schedule.phases.emplace_back();
    phase.params.push_back(names[i - 1]);
    if (i > 1) phase.params.push_back(names[i - 2]);
  }
  return schedule;
}

void write_schedule(const Tree& schedule, const std::filesystem::path& path) {
  write_whole_file(path, write_yaml(schedule), as_error<CheckpointError>);
}

std::optional<double> lr_number(const Tree& value) {
  if (value.is_number()) return value.as_double();
  if (!value.is_string()) return std::nullopt;
  std::string text = value.as_string();
  if (text.starts_with('+')) text.erase(0, 1);
  double number = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

}  // namespace fabric

#include <fabric/helpers/finetuning/schedule_reader.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <optional>

#include <fabric/base/error.h>
#include <fabric/base/nearest_name.h>

namespace fabric {
namespace {

const std::vector<std::string>& phase_keys() {
  static const std::vector<std::string> keys{"params", "max_transition_epoch", "max_transition_step", "lr", "scale_lr",
                                             "freeze", "new_optimizer",        "new_lr_scheduler"};
  return keys;
}

template <class T>
std::optional<T> whole_text(const std::string& text) {
  T number{};
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

// Keys that are numbers with a fraction are cut off, as Python's int() does.
std::optional<long> phase_number(const std::string& key) {
  if (auto whole = whole_text<long>(key)) return whole;
  auto fraction = whole_text<double>(key);
  if (!fraction || !std::isfinite(*fraction) || std::abs(*fraction) > 1e6) return std::nullopt;
  return static_cast<long>(*fraction);
}

Tree renumbered(const std::map<long, const Tree*>& phases) {
  Tree::Map out;
  for (const auto& [key, phase] : phases) out.append(std::to_string(out.size()), *phase);
  return out;
}

Tree with_whole_keys(const std::map<long, const Tree*>& phases) {
  Tree::Map out;
  for (const auto& [key, phase] : phases) out.append(std::to_string(key), *phase);
  return out;
}

std::map<long, const Tree*> ordered_phases(const ScheduleSource& source, const FinetuningMessages& messages) {
  std::map<long, const Tree*> phases;
  std::string converted;
  for (const auto& [key, phase] : source.tree.as_map()) {
    auto number = phase_number(key);
    if (!number)
      throw ConfigError(source.at(key) + "the phase '" + key +
                        "' is no number. Phases are numbered 0, 1, 2 … in the order they are trained");
    if (key != std::to_string(*number))
      converted += (converted.empty() ? "" : ", ") + key + " -> " + std::to_string(*number);
    if (!phases.emplace(*number, &phase).second)
      throw ConfigError(source.at(key) + "the phase " + std::to_string(*number) + " is there twice");
  }
  const bool contiguous = phases.begin()->first == 0 && phases.rbegin()->first + 1 == static_cast<long>(phases.size());
  if (!contiguous) {
    std::string keys;
    for (const auto& [key, phase] : phases) keys += (keys.empty() ? "" : ", ") + std::to_string(key);
    throw ConfigError(source.at("") + "the phases are numbered " + keys +
                      "; they must begin with 0 and leave no number out." + source.offer_mended(renumbered(phases)));
  }
  if (!converted.empty())
    messages.warn(source.at("") + "phases that are no whole numbers were converted: " + converted + "." +
                  source.offer_mended(with_whole_keys(phases)));
  return phases;
}

// One phase's map, field by field.
class PhaseReader {
 public:
  PhaseReader(const ScheduleSource& source, std::size_t depth, std::string path, const Tree& tree)
      : source_(source), depth_(depth), path_(std::move(path)), tree_(tree) {}

  FinetuningPhase read(const FinetuningMessages& messages) {
    if (!tree_.is_map()) fail("", std::string("a phase is a map with 'params', given ") + tree_.kind());
    for (const auto& [key, value] : tree_.as_map())
      if (std::find(phase_keys().begin(), phase_keys().end(), key) == phase_keys().end())
        fail(key, "'" + key + "' is unknown" + did_you_mean(key, phase_keys()));
    FinetuningPhase phase;
    phase.params = names("params");
    phase.freeze = names("freeze");
    phase.max_transition_epoch = static_cast<int>(limit("max_transition_epoch"));
    phase.max_transition_step = limit("max_transition_step");
    phase.lr = number("lr");
    phase.scale_lr = number("scale_lr");
    if (const Tree* found = tree_.find("new_optimizer")) phase.new_optimizer = *found;
    if (const Tree* found = tree_.find("new_lr_scheduler")) phase.new_lr_scheduler = *found;
    if (depth_ == 0) check_first(phase, messages);
    return phase;
  }

 private:
  [[noreturn]] void fail(const std::string& key, const std::string& what) const {
    throw ConfigError(source_.at(key.empty() ? path_ : path_ + "." + key) + "phase " + std::to_string(depth_) + ": " +
                      what);
  }
  std::vector<std::string> names(const char* key) const {
    const Tree* found = tree_.find(key);
    if (!found || found->is_null()) return {};
    if (found->is_string()) return {found->as_string()};
    if (!found->is_list()) fail(key, std::string("'") + key + "' is a list of names, given " + found->kind());
    std::vector<std::string> out;
    for (const Tree& item : found->as_list()) {
      if (!item.is_string() || item.as_string().empty())
        fail(key, std::string("'") + key + "' holds names and patterns; entry " + std::to_string(out.size()) + " is " +
                      (item.is_string() ? "an empty one" : item.kind()) + ". Quote names that look like numbers");
      out.push_back(item.as_string());
    }
    return out;
  }
  std::int64_t limit(const char* key) const {
    const Tree* found = tree_.find(key);
    if (!found || found->is_null()) return -1;
    std::optional<double> value = lr_number(*found);
    if (!value || *value != std::floor(*value) || *value < -1 || *value > 2e9)
      fail(key, std::string("'") + key + "' is a whole number from 0 on, or -1 for no limit, given " + shown(*found));
    return static_cast<std::int64_t>(*value);
  }
  std::optional<double> number(const char* key) const {
    const Tree* found = tree_.find(key);
    if (!found || found->is_null()) return std::nullopt;
    std::optional<double> value = lr_number(*found);
    if (!value || !std::isfinite(*value) || *value < 0)
      fail(key, std::string("'") + key + "' is a number from 0 on, given " + shown(*found));
    return value;
  }
  static std::string shown(const Tree& tree) {
    if (tree.is_string()) return "'" + tree.as_string() + "'";
    return tree.is_number() ? write_json(tree) : tree.kind();
  }

  // The first phase trains with what the caller built.
  void check_first(FinetuningPhase& phase, const FinetuningMessages& messages) const {
    for (const char* key : {"new_optimizer", "new_lr_scheduler", "scale_lr", "freeze"}) {
      const Tree* found = tree_.find(key);
      if (!found || found->is_null()) continue;
      Tree mended = source_.tree;
      mended.at(path_).as_map().erase(key);
      fail(key, std::string("'") + key +
                    "' is possible from phase 1 on; the first phase begins with the optimizer "
                    "and the scheduler that the program made. Leave it out." +
                    source_.offer_mended(mended));
    }
    if (!phase.lr) return;
    messages.warn(source_.at(path_ + ".lr") + "the lr of phase 0 is ignored: the optimizer's own holds there");
    phase.lr.reset();
  }

  const ScheduleSource& source_;
  std::size_t depth_;
  std::string path_;
  const Tree& tree_;
};

}  // namespace

std::string ScheduleSource::at(const std::string& path) const {
  auto line = lines.find(path);
  std::string place = name;
  if (line != lines.end()) place.append(":").append(std::to_string(line->second));
  return place.append(": ");
}

std::string ScheduleSource::offer_mended(const Tree& schedule) const {
  if (mended.empty()) return "";
  try {
    if (writes) write_schedule(schedule, mended);
  } catch (const Error& error) {
    return std::string(" A mended schedule could not be written: ") + error.what();
  }
  return " A mended schedule is in '" + mended.string() + "': look it over and start with it";
}

ScheduleSource load_schedule_source(const Tree& ft_schedule, const Peers& peers) {
  ScheduleSource source;
  source.writes = peers.rank() == 0;
  if (!ft_schedule.is_string()) {
    source.tree = ft_schedule;
  } else {
    source.name = ft_schedule.as_string();
    Value outcome = Value::Map{{"error", ""}, {"tree", Value()}};
    if (peers.rank() == 0) {
      try {
        source.tree = read_tree_file(source.name, {}, &source.lines);
        outcome["tree"] = to_value(source.tree);
      } catch (const Error& error) {
        outcome["error"] = error.what();
      }
    }
    outcome = peers.broadcast(outcome);
    if (!outcome.at("error").as_string().empty())
      throw ConfigError("the fine-tuning schedule cannot be read: " + outcome.at("error").as_string());
    if (peers.rank() != 0) source.tree = to_tree(outcome.at("tree"));
  }
  if (!source.tree.is_map() || source.tree.as_map().empty())
    throw ConfigError(source.at("") + "a schedule is a map of phases, {0: {params: […]}, 1: …}, given " +
                      (source.tree.is_map() ? "an empty one" : source.tree.kind()));
  return source;
}

FinetuningSchedule read_schedule(const ScheduleSource& source, const FinetuningMessages& messages) {
  FinetuningSchedule schedule;
  for (const auto& [number, tree] : ordered_phases(source, messages)) {
    std::string path;
    for (const auto& [key, phase] : source.tree.as_map())
      if (&phase == tree) path = key;
    schedule.phases.push_back(PhaseReader(source, static_cast<std::size_t>(number), path, *tree).read(messages));
  }
  return schedule;
}

}  // namespace fabric

#include <fabric/helpers/finetuning/schedule_validation_internal.h>

#include <algorithm>
#include <unordered_set>

#include <fabric/base/error.h>
#include <fabric/base/nearest_name.h>
#include <fabric/helpers/finetuning/python_regex_internal.h>

namespace fabric {
namespace {

using Names = std::vector<std::string>;
using NameSet = std::unordered_set<std::string>;

std::string listed(const Names& names) {
  std::string out;
  for (std::size_t i = 0; i < names.size() && i < 10; ++i) out += (i == 0 ? "" : ", ") + names[i];
  return out + (names.size() > 10 ? ", … (" + std::to_string(names.size()) + " in all)" : "");
}

class Expansion {
 public:
  Expansion(FinetuningSchedule& schedule, const ModelParameters& parameters, const ScheduleSource& source,
            const FinetuningMessages& messages)
      : schedule_(schedule), parameters_(parameters), source_(source), messages_(messages) {}

  void run() {
    for (depth_ = 0; depth_ < schedule_.size(); ++depth_) expand_params(schedule_.phases[depth_]);
    expand_rest();
    require_disjoint();
    NameSet thawed;
    for (depth_ = 0; depth_ < schedule_.size(); ++depth_) {
      auto& phase = schedule_.phases[depth_];
      phase.freeze = refrozen(phase, thawed);
      for (const auto& name : phase.freeze) thawed.erase(name);
      thawed.insert(phase.params.begin(), phase.params.end());
    }
    if (schedule_.phases[0].params.empty()) {
      depth_ = 0;
      fail("it names no parameters, so that nothing would be trained. List those to begin with under 'params'");
    }
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    std::string phase = std::to_string(depth_);
    throw ConfigError(source_.at(phase + ".params") + "phase " + phase + ": " + what);
  }

  void expand_params(FinetuningPhase& phase) {
    Names names;
    for (const auto& entry : phase.params) {
      if (entry == kRestOfModel) {
        if (rest_depth_ >= 0) fail(std::string(kRestOfModel) + " is there twice; one phase gets the rest of the model");
        rest_depth_ = static_cast<int>(depth_);
        rest_at_ = names.size();
        continue;
      }
      for (auto& name : expand(entry)) names.push_back(std::move(name));
    }
    phase.params = std::move(names);
  }

  Names expand(const std::string& entry) const {
    if (parameters_.contains(entry)) return {entry};
    if (parameters_.is_module(entry)) return below(entry);
    Names names = matching(entry);
    if (!names.empty()) return names;
    if (const std::string* registered = parameters_.source_of(entry)) return drop_alias(entry, *registered), Names{};
    Names valid = parameters_.names();
    fail("'" + entry + "' is no parameter, no module and matches the start of no parameter's name" +
         did_you_mean(entry, valid));
  }

  Names below(const std::string& module) const {
    Names names;
    bool any = false;
    for (auto& name : parameters_.below(module)) {
      any = true;
      if (const std::string* registered = parameters_.source_of(name))
        drop_alias(name, *registered);
      else
        names.push_back(std::move(name));
    }
    if (!any) fail("the module '" + module + "' has no parameters; leave it out");
    return names;
  }

  void drop_alias(const std::string& alias, const std::string& registered) const {
    messages_.warn(source_.at(std::to_string(depth_) + ".params") + "'" + alias + "' in phase " +
                   std::to_string(depth_) + " is another name of '" + registered +
                   "', whose tensor it shares: it is left out, and thawed with that one");
  }

  Names matching(const std::string& entry) const {
    Names names;
    try {
      PythonRegex pattern(entry);
      for (const auto& name : parameters_.names())
        if (pattern.matches_start_of(name)) names.push_back(name);
    } catch (const ConfigError& error) {
      fail(error.what());
    }
    return names;
  }

  void expand_rest() {
    if (rest_depth_ < 0) return;
    NameSet named;
    for (const auto& phase : schedule_.phases) named.insert(phase.params.begin(), phase.params.end());
    auto& params = schedule_.phases[static_cast<std::size_t>(rest_depth_)].params;
    Names rest;
    for (const auto& name : parameters_.names())
      if (!named.contains(name)) rest.push_back(name);
    if (rest.empty())
      messages_.warn(source_.at("") + "nothing is left of the model for " + kRestOfModel + " in phase " +
                     std::to_string(rest_depth_));
    params.insert(params.begin() + static_cast<std::ptrdiff_t>(rest_at_), rest.begin(), rest.end());
  }

  // A parameter may come again once it was frozen in between.
  void require_disjoint() {
    NameSet thawed;
    Names twice;
    FinetuningSchedule mended = schedule_;
    for (depth_ = 0; depth_ < schedule_.size(); ++depth_) {
      auto& phase = mended.phases[depth_];
      for (const auto& name : earlier(schedule_.phases[depth_].freeze, thawed)) thawed.erase(name);
      std::erase_if(phase.params, [&](const std::string& name) {
        if (thawed.insert(name).second) return false;
        twice.push_back(name);
        return true;
      });
    }
    if (twice.empty()) return;
    throw ConfigError(source_.at("") + "parameters are thawed more than once: " + listed(twice) +
                      ". Each belongs into one phase; a module's path takes the module alone, where a pattern also "
                      "takes names that only begin like it." +
                      source_.offer_mended(mended.to_tree()));
  }

  Names earlier(const Names& entries, const NameSet& thawed) const {
    Names names;
    for (const auto& entry : entries)
      for (auto& name : expand(entry))
        if (thawed.contains(name)) names.push_back(std::move(name));
    return names;
  }

  Names refrozen(const FinetuningPhase& phase, const NameSet& thawed) const {
    for (const auto& entry : phase.freeze)
      if (earlier({entry}, thawed).empty())
        fail("'freeze' names '" + entry + "', of which no earlier phase thaws anything");
    Names names = earlier(phase.freeze, thawed);
    NameSet own(phase.params.begin(), phase.params.end());
    for (const auto& name : names)
      if (own.contains(name)) fail("'" + name + "' is both under 'params' and under 'freeze'");
    return names;
  }

  FinetuningSchedule& schedule_;
  const ModelParameters& parameters_;
  const ScheduleSource& source_;
  const FinetuningMessages& messages_;
  std::size_t depth_ = 0;
  int rest_depth_ = -1;
  std::size_t rest_at_ = 0;
};

}  // namespace

void expand_schedule(FinetuningSchedule& schedule, const ModelParameters& parameters, const ScheduleSource& source,
                     const FinetuningMessages& messages) {
  Expansion(schedule, parameters, source, messages).run();
}

void check_transitions(const FinetuningSchedule& schedule, std::size_t deepest, bool epoch_transitions_only,
                       const ScheduleSource& source, const FinetuningMessages& messages) {
  int latest = -1;
  Names without_limit;
  for (std::size_t depth = 0; depth < schedule.size(); ++depth) {
    const int limit = schedule.phases[depth].max_transition_epoch;
    std::string phase = std::to_string(depth);
    if (limit < 0 && schedule.phases[depth].max_transition_step < 0) without_limit.push_back(phase);
    if (depth == 0) continue;
    if (limit >= 0 && limit <= latest)
      messages.info(source.at(phase + ".max_transition_epoch") + "phase " + phase + " ends before epoch " +
                    std::to_string(limit) + ", an earlier one before epoch " + std::to_string(latest) +
                    ": it may last a single epoch");
    latest = std::max(latest, limit);
  }
  if (epoch_transitions_only && !without_limit.empty())
    throw ConfigError(source.at("") + "with epoch_transitions_only every phase needs a max_transition_epoch; " +
                      (without_limit.size() == 1 ? "missing in phase " : "missing in phases ") + listed(without_limit) +
                      ". Add them, or leave epoch_transitions_only out and attach an EarlyStopping");
  if (int limit = schedule.phases[deepest].max_transition_epoch; limit >= 0)
    messages.warn(source.at(std::to_string(deepest) + ".max_transition_epoch") + "the last phase, " +
                  std::to_string(deepest) + ", has max_transition_epoch " + std::to_string(limit) +
                  ": training ends there unless max_epochs is larger");
}

}  // namespace fabric

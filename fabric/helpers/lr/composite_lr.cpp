#include <fabric/helpers/lr/composite_lr.h>

#include <algorithm>
#include <utility>

namespace fabric {
namespace {

torch::optim::Optimizer& optimizer_of(const CompositeLR::Schedulers& schedulers) {
  if (schedulers.empty() || !schedulers[0]) throw ConfigError("ChainedScheduler: give it at least one scheduler");
  return schedulers[0]->optimizer();
}

}  // namespace

CompositeLR::CompositeLR(const char* name, torch::optim::Optimizer& optimizer, Schedulers schedulers)
    : LRScheduler(optimizer), schedulers_(std::move(schedulers)) {
  if (schedulers_.empty()) throw ConfigError(std::string(name) + ": give it at least one scheduler");
  for (std::size_t i = 0; i < schedulers_.size(); ++i) {
    const auto which = "scheduler " + std::to_string(i);
    if (!schedulers_[i]) throw ConfigError(std::string(name) + ": " + which + " is an empty pointer");
    if (schedulers_[i]->needs_metric())
      throw ConfigError(std::string(name) + ": " + which + " is a " + schedulers_[i]->name() +
                        ", which needs a metric at each step; step it yourself, beside this one");
    if (&schedulers_[i]->optimizer() != &optimizer)
      throw ConfigError(std::string(name) + ": " + which + " (" + schedulers_[i]->name() +
                        ") was made over another optimizer; all must work on the same one");
  }
}

void CompositeLR::set_base_lrs(std::vector<double> lrs) {
  LRScheduler::set_base_lrs(lrs);
  for (auto& scheduler : schedulers_) scheduler->set_base_lrs(lrs);
}

void CompositeLR::grow(double initial_lr) {
  LRScheduler::grow(initial_lr);
  for (auto& scheduler : schedulers_) scheduler->grow(initial_lr);
}

void CompositeLR::shrink(std::size_t groups) {
  LRScheduler::shrink(groups);
  for (auto& scheduler : schedulers_) scheduler->shrink(groups);
}

void CompositeLR::rebind(torch::optim::Optimizer& optimizer) {
  for (auto& scheduler : schedulers_) scheduler->rebind(optimizer);
  LRScheduler::rebind(optimizer);
}

void CompositeLR::save_fields(Value& state) const {
  Value::List states;
  for (const auto& scheduler : schedulers_) states.push_back(scheduler->state_dict());
  state["schedulers"] = std::move(states);
}

void CompositeLR::load_fields(const Value& state) {
  const auto& states = state.at("schedulers").as_list();
  if (states.size() != schedulers_.size())
    throw CheckpointKeyError(std::string(name()) + " has " + std::to_string(schedulers_.size()) +
                             " schedulers, the state " + std::to_string(states.size()));
  Value::List before;
  for (const auto& scheduler : schedulers_) before.push_back(scheduler->state_dict());
  try {
    for (std::size_t i = 0; i < states.size(); ++i) schedulers_[i]->load_state_dict(states[i]);
  } catch (...) {
    for (std::size_t i = 0; i < states.size(); ++i) schedulers_[i]->load_state_dict(before[i]);
    throw;
  }
}

// --- SequentialLR

SequentialLR::SequentialLR(torch::optim::Optimizer& optimizer, Schedulers schedulers,
                           std::vector<std::int64_t> milestones)
    : CompositeLR("SequentialLR", optimizer, std::move(schedulers)), milestones_(std::move(milestones)) {
  if (milestones_.size() + 1 != schedulers_.size())
    throw ConfigError("SequentialLR: there must be one milestone fewer than there are schedulers; given " +
                      std::to_string(schedulers_.size()) + " schedulers and " + std::to_string(milestones_.size()) +
                      " milestones");
  if (!std::is_sorted(milestones_.begin(), milestones_.end()))
    throw ConfigError("SequentialLR: the milestones must rise");
  for (std::size_t i = 1; i < schedulers_.size(); ++i)
    if (dynamic_cast<ChainedScheduler*>(schedulers_[i].get()))
      throw ConfigError("SequentialLR: a ChainedScheduler can only be the first scheduler; given one as scheduler " +
                        std::to_string(i));
  arrange();
}

// Every scheduler did its first step when it was made; only that of the one that starts may stay.
void SequentialLR::arrange() {
  auto& groups = optimizer().param_groups();
  base_lrs_ = initial_lrs();
  require_groups();
  for (std::size_t g = 0; g < groups.size(); ++g) set_lr(groups[g], initial_lrs()[g]);
  for (auto& scheduler : schedulers_) scheduler->undo_initial_step();
  last_epoch_ = 0;
  schedulers_[scheduler_at(0)]->initial_step();
  note_lrs();
}

std::size_t SequentialLR::scheduler_at(std::int64_t epoch) const {
  return static_cast<std::size_t>(std::upper_bound(milestones_.begin(), milestones_.end(), epoch) -
                                  milestones_.begin());
}

void SequentialLR::advance(std::optional<double>) {
  require_groups();
  const std::size_t at = scheduler_at(last_epoch_ + 1);
  if (at > 0 && milestones_[at - 1] == last_epoch_ + 1)
    schedulers_[at]->jump(0);
  else
    schedulers_[at]->advance(std::nullopt);
  ++last_epoch_;
  note_lrs();
}

void SequentialLR::jump(std::int64_t epoch) {
  // Only to its beginning, by another SequentialLR around it.
  schedulers_[scheduler_at(epoch)]->jump(epoch);
  last_epoch_ = epoch;
  note_lrs();
}

void SequentialLR::initial_step() {
  schedulers_[scheduler_at(0)]->initial_step();
  last_epoch_ = 0;
  note_lrs();
}

void SequentialLR::undo_initial_step() {
  schedulers_[scheduler_at(0)]->undo_initial_step();
  --last_epoch_;
}

void SequentialLR::start_over() {
  for (auto& scheduler : schedulers_) scheduler->start_over();
  arrange();
}

void SequentialLR::save_fields(Value& state) const {
  CompositeLR::save_fields(state);
  state["milestones"] = Value::List(milestones_.begin(), milestones_.end());
}

void SequentialLR::load_fields(const Value& state) {
  std::vector<std::int64_t> milestones;
  for (const auto& item : state.at("milestones").as_list()) milestones.push_back(item.as_int());
  if (milestones.size() != milestones_.size()) throw MisuseError("it has another number of milestones");
  CompositeLR::load_fields(state);
  milestones_ = std::move(milestones);
}

// --- ChainedScheduler

ChainedScheduler::ChainedScheduler(Schedulers schedulers)
    : CompositeLR("ChainedScheduler", optimizer_of(schedulers), schedulers) {
  base_lrs_ = initial_lrs();
  last_epoch_ = 0;
  note_lrs();
}

void ChainedScheduler::advance(std::optional<double>) {
  require_groups();
  for (auto& scheduler : schedulers_) scheduler->advance(std::nullopt);
  ++last_epoch_;
  note_lrs();
}

void ChainedScheduler::initial_step() {
  for (auto& scheduler : schedulers_) scheduler->initial_step();
  last_epoch_ = 0;
  note_lrs();
}

void ChainedScheduler::undo_initial_step() {
  for (auto& scheduler : schedulers_) scheduler->undo_initial_step();
  --last_epoch_;
}

void ChainedScheduler::start_over() {
  for (auto& scheduler : schedulers_) scheduler->start_over();
  base_lrs_ = initial_lrs();
  last_epoch_ = 0;
  note_lrs();
}

}  // namespace fabric

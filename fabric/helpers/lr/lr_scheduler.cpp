#include <fabric/helpers/lr/lr_scheduler.h>

#include <algorithm>
#include <cmath>

#include <fabric/base/scope.h>

#include "fabric/helpers/lr/lr_values_internal.h"

namespace fabric {

void LRScheduler::start(std::int64_t last_epoch) {
  auto lrs = group_lrs();
  auto& initial = *initial_lrs_;
  initial.resize(lrs.size(), lr::kUnset);
  auto unset = std::find_if(initial.begin(), initial.end(), [](double rate) { return std::isnan(rate); });
  if (last_epoch != -1 && unset != initial.end())
    throw MisuseError(std::string(name()) + ": last_epoch " + std::to_string(last_epoch) +
                      " resumes a schedule, but group " + std::to_string(unset - initial.begin()) +
                      " of the optimizer has no initial learning rate. Set `*shared_initial_lrs(optimizer)` before, or "
                      "leave last_epoch at -1 and call load_state_dict");
  for (std::size_t g = 0; g < lrs.size(); ++g)
    if (std::isnan(initial[g])) initial[g] = lrs[g];
  base_lrs_ = initial;
  last_epoch_ = last_epoch;
  initial_step();
}

void LRScheduler::initial_step() {
  initial_ = true;
  Scope done([this] { initial_ = false; });
  advance(std::nullopt);
}

void LRScheduler::advance(std::optional<double>) { update(last_epoch_ + 1, false); }

void LRScheduler::update(std::int64_t epoch, bool closed_form) {
  require_groups();
  auto& groups = optimizer_->param_groups();
  next_lrs_.resize(groups.size());
  auto before = std::exchange(last_epoch_, epoch);
  try {
    for (std::size_t g = 0; g < groups.size(); ++g)
      next_lrs_[g] = closed_form ? closed_form_lr(g) : next_lr(g, get_lr(groups[g]));
  } catch (...) {
    last_epoch_ = before;
    throw;
  }
  for (std::size_t g = 0; g < groups.size(); ++g) set_lr(groups[g], next_lrs_[g]);
  last_lrs_.swap(next_lrs_);
  update_momentum();
}

void LRScheduler::require_groups() const {
  if (base_lrs_.size() == optimizer_->param_groups().size()) return;
  throw MisuseError(std::string(name()) + " knows of " + std::to_string(base_lrs_.size()) +
                    " groups, the optimizer has " + std::to_string(optimizer_->param_groups().size()) +
                    ". Call grow(initial_lr) on the scheduler after each group that is added, shrink(groups) after " +
                    "some are taken away");
}

std::vector<double> LRScheduler::group_lrs() const {
  std::vector<double> lrs;
  for (const auto& group : optimizer_->param_groups()) lrs.push_back(get_lr(group));
  return lrs;
}

void LRScheduler::note_lrs() { last_lrs_ = group_lrs(); }

void LRScheduler::set_base_lrs(std::vector<double> lrs) {
  if (lrs.size() != base_lrs_.size())
    throw MisuseError(std::string(name()) + " has " + std::to_string(base_lrs_.size()) +
                      " base learning rates, one for each group; given " + std::to_string(lrs.size()));
  base_lrs_ = std::move(lrs);
}

void LRScheduler::grow(double initial_lr) {
  // Schedulers of one optimizer share the list: the first that is told appends.
  auto& initial = *initial_lrs_;
  const std::size_t group = base_lrs_.size();
  if (initial.size() <= group) initial.resize(group + 1, lr::kUnset);
  initial[group] = initial_lr;
  base_lrs_.push_back(initial_lr);
  const auto& groups = optimizer_->param_groups();
  last_lrs_.push_back(group < groups.size() ? get_lr(groups[group]) : initial_lr);
}

void LRScheduler::shrink(std::size_t groups) {
  if (groups >= base_lrs_.size()) return;
  base_lrs_.resize(groups);
  last_lrs_.resize(std::min(groups, last_lrs_.size()));
  if (initial_lrs_->size() > groups) initial_lrs_->resize(groups);
}

void LRScheduler::rebind(torch::optim::Optimizer& optimizer) {
  auto shared = shared_initial_lrs(optimizer);
  if (shared != initial_lrs_) *shared = *initial_lrs_;
  optimizer_ = &optimizer;
  initial_lrs_ = std::move(shared);
}

void LRScheduler::restart() {
  auto lrs = group_lrs();
  shrink(lrs.size());
  while (base_lrs_.size() < lrs.size()) grow(lrs[base_lrs_.size()]);
  *initial_lrs_ = std::move(lrs);
  start_over();
}

Value LRScheduler::state_dict() const {
  auto initial = *initial_lrs_;
  initial.resize(base_lrs_.size(), lr::kUnset);
  Value state = Value::Map{{"class", name()},
                           {"last_epoch", last_epoch_},
                           {"base_lrs", lr::list_of(base_lrs_)},
                           {"initial_lrs", lr::list_of(initial)},
                           {"last_lrs", lr::list_of(last_lrs_)}};
  save_fields(state);
  return state;
}

void LRScheduler::load_state_dict(const Value& state) {
  const Value* saved = state.find("class");
  if (!saved || !saved->is_string() || saved->as_string() != name())
    throw CheckpointKeyError(std::string(name()) + " cannot go on from the state of " +
                             (saved && saved->is_string() ? saved->as_string() : "something that is no LR scheduler") +
                             "; make the scheduler that was saved, or start this one anew");
  try {
    auto last_epoch = state.at("last_epoch").as_int();
    auto base = lr::numbers_of(state.at("base_lrs"));
    auto initial = lr::numbers_of(state.at("initial_lrs"));
    auto last = lr::numbers_of(state.at("last_lrs"));
    if (initial.size() < base.size()) throw MisuseError("initial_lrs has fewer entries than base_lrs");
    load_fields(state);
    last_epoch_ = last_epoch;
    base_lrs_ = std::move(base);
    last_lrs_ = std::move(last);
    *initial_lrs_ = std::move(initial);
  } catch (const CheckpointKeyError&) {
    throw;
  } catch (const Error& error) {
    throw CheckpointKeyError(std::string("the state of ") + name() + " is damaged: " + error.what());
  }
}

std::vector<double> PerGroup::expand(const std::string& what, std::size_t groups) const {
  if (one_for_all_) return std::vector<double>(groups, values_[0]);
  if (values_.size() != groups)
    throw ConfigError(what + " must be one number or as many as the optimizer has groups, which are " +
                      std::to_string(groups) + "; given " + std::to_string(values_.size()));
  return values_;
}

PerGroup PerGroup::from_tree(const Tree& tree) {
  if (tree.is_null()) return {};
  if (tree.is_list()) return detail::with_layer(std::vector<double>{}, tree);
  return detail::with_layer(0.0, tree);
}

Tree PerGroup::to_tree() const {
  if (!is_given()) return {};
  if (one_for_all_) return values_[0];
  return Tree::List(values_.begin(), values_.end());
}

}  // namespace fabric

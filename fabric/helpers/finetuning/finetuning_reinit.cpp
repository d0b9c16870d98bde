#include <algorithm>
#include <unordered_map>

#include <fabric/helpers/finetuning/finetuning_scheduler_internal.h>
#include <fabric/optim/optimizer_group.h>

// A new optimizer in the middle of a run: phases up to the one before are built in it, the new phase is added as
// always. Three kinds of rates are told apart. The present ones go on where they were. What the present scheduler
// starts its formulas from (base) goes on as well. What a scheduler made later starts from (initial) is the new
// optimizer's own.
namespace fabric {

void FinetuningScheduler::Impl::reinit_optimizer(const OptimizerReinit& reinit, bool lr_follows) {
  const auto& init = reinit.optimizer_init;
  auto fresh = param_groups::make_empty(init.class_path, init.init_args,
                                        parameters.tensors(parameters.in_order(phase(0).params)));
  const std::vector<double> initial = fill_groups(*fresh);
  LRScheduler* scheduler = lr_follows ? nullptr : lr.get();
  std::vector<double> base = initial;
  const auto sources = old_groups_of(*fresh);
  for (std::size_t i = 0; i < sources.size(); ++i) {
    if (!sources[i]) continue;
    set_lr(fresh->param_groups()[i], get_lr(optimizer->param_groups()[*sources[i]]));
    if (scheduler && *sources[i] < scheduler->base_lrs().size()) base[i] = scheduler->base_lrs()[*sources[i]];
  }
  retired.push_back(optimizer.replace(std::move(fresh)));
  if (scheduler) {
    scheduler->rebind(*optimizer);
    scheduler->shrink(base.size());
    while (scheduler->base_lrs().size() < base.size()) scheduler->grow(base[scheduler->base_lrs().size()]);
    scheduler->set_base_lrs(base);
  }
  initial_lrs = shared_initial_lrs(*optimizer);
  *initial_lrs = initial;
  optimizer_in_use = reinit;
}

// The groups of the phases so far; returns their initial rates.
std::vector<double> FinetuningScheduler::Impl::fill_groups(torch::optim::Optimizer& fresh) const {
  const auto& groups = fresh.param_groups();
  std::vector<double> initial;
  const double own = get_lr(torch::optim::OptimizerParamGroup({}, fresh.defaults().clone()));
  for (int depth = 0; depth < curr_depth; ++depth) {
    const double rate = depth == 0 ? own : phase_lr(depth) * lambda_factor();
    append_phase(fresh, depth, rate);
    initial.resize(groups.size(), rate);
    const auto& lr_reinit = lr_reinits[static_cast<std::size_t>(depth)];
    if (!lr_reinit) continue;
    const auto& given = lr_reinit->init_pg_lrs;
    std::copy_n(given.begin(), std::min(given.size(), initial.size()), initial.begin());
  }
  return initial;
}

// The old optimizer's group for each of the new one's: that at the same place where it holds the same parameters,
// otherwise the one that holds the first of them, since the old groups may have been divided otherwise.
std::vector<std::optional<std::size_t>> FinetuningScheduler::Impl::old_groups_of(
    const torch::optim::Optimizer& fresh) const {
  const auto old = param_groups::records(*optimizer, parameters, {}),
             now = param_groups::records(fresh, parameters, {});
  std::unordered_map<std::string, std::size_t> group_of;
  for (std::size_t i = 0; i < old.size(); ++i)
    for (const auto& name : old[i].params) group_of.emplace(name, i);
  std::vector<std::optional<std::size_t>> sources(now.size());
  for (std::size_t i = 0; i < now.size(); ++i) {
    if (i < old.size() && parameters.in_order(old[i].params) == now[i].params) {
      sources[i] = i;
    } else if (!now[i].params.empty()) {
      auto found = group_of.find(now[i].params.front());
      if (found != group_of.end()) sources[i] = found->second;
    }
  }
  return sources;
}

}  // namespace fabric

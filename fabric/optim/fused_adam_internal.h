#pragma once
// Private to the fused Adam and AdamW, which differ in their kernel only.

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros_like.h>

#include "fabric/optim/fused_lists_internal.h"

namespace fabric::optim::detail {

/// Parameters that have made equally many steps: one counter on their device serves all of them.
template <class OptionsType, class StateType>
struct AdamBucket : BucketBase {
  using Options = OptionsType;
  using State = StateType;

  AdamBucket(std::size_t group, const at::Tensor& first, const Options& options, const State* state)
      : BucketBase(group, first),
        amsgrad(options.amsgrad()),
        steps(state->step()),
        counter(at::full({}, static_cast<double>(steps), first.options().dtype(c10::ScalarType::Float))) {}

  static bool needs_state(const Options&) { return true; }
  static std::unique_ptr<State> made(const at::Tensor& parameter) {
    auto state = std::make_unique<State>();
    state->step(0);
    state->exp_avg(at::zeros_like(parameter));
    state->exp_avg_sq(at::zeros_like(parameter));
    return state;
  }

  bool joins(const Options& options, const State* state) const {
    return state->step() == steps && options.amsgrad() == amsgrad;
  }

  void add(const at::Tensor& parameter, State* state) {
    auto fitting = [&](const at::Tensor& kept) {
      return kept.defined() ? laid_out_like(parameter, kept) : at::zeros_like(parameter);
    };
    state->exp_avg(fitting(state->exp_avg()));
    state->exp_avg_sq(fitting(state->exp_avg_sq()));
    if (amsgrad) state->max_exp_avg_sq(fitting(state->max_exp_avg_sq()));
    parameters.push_back(parameter);
    averages.push_back(state->exp_avg());
    squares.push_back(state->exp_avg_sq());
    if (amsgrad) maxima.push_back(state->max_exp_avg_sq());
    counters.push_back(counter);
    states.push_back(state);
  }

  bool holds(std::size_t index, const Options& options, const State* state) const {
    return state && state == states[index] && state->step() == steps && options.amsgrad() == amsgrad &&
           state->exp_avg().is_same(averages[index]) && state->exp_avg_sq().is_same(squares[index]) &&
           (!amsgrad || state->max_exp_avg_sq().is_same(maxima[index])) &&
           same_layout(parameters[index], averages[index]);
  }

  /// `kernel` is at::_fused_adam_ or at::_fused_adamw_.
  template <class Kernel>
  void run(const Options& options, Kernel&& kernel) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    if (counter.is_cpu())
      *counter.template data_ptr<float>() += 1;
    else
      counter.add_(1);
    auto [beta1, beta2] = options.betas();
    kernel(parameters, gradients, averages, squares, maxima, counters, options.lr(), beta1, beta2,
           options.weight_decay(), options.eps(), amsgrad, /*maximize=*/false);
    bump_versions();
    ++steps;
    for (State* state : states) state->step(steps);
  }

  bool amsgrad;
  std::int64_t steps;
  at::Tensor counter;
  std::vector<at::Tensor> averages;
  std::vector<at::Tensor> squares;
  std::vector<at::Tensor> maxima;
  std::vector<at::Tensor> counters;
  std::vector<State*> states;
};

}  // namespace fabric::optim::detail

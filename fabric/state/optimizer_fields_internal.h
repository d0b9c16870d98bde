#pragma once

#include <deque>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/lbfgs.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

// The settings and per-parameter state of LibTorch's optimizers, by the names that Python's optimizers use.
namespace fabric::optimizer_fields {

/// What loading must know about a state field.
enum class Kind {
  plain,     // a number, or tensors of any shape
  required,  // a tensor of the parameter's shape that a step cannot do without
  optional,  // a tensor of the parameter's shape that may be missing
};

/// One kind of optimizer. Classes derived from its options and state types count as that kind.
template <class OptionsType, class StateType>
struct Family {
  using Options = OptionsType;
  using State = StateType;
};
using Sgd = Family<torch::optim::SGDOptions, torch::optim::SGDParamState>;
using Adam = Family<torch::optim::AdamOptions, torch::optim::AdamParamState>;
using AdamW = Family<torch::optim::AdamWOptions, torch::optim::AdamWParamState>;
using Adagrad = Family<torch::optim::AdagradOptions, torch::optim::AdagradParamState>;
using RmsProp = Family<torch::optim::RMSpropOptions, torch::optim::RMSpropParamState>;
using Lbfgs = Family<torch::optim::LBFGSOptions, torch::optim::LBFGSParamState>;

template <class F>
inline constexpr bool kIsAdam = std::is_same_v<F, Adam> || std::is_same_v<F, AdamW>;
/// Makes its state when it is built and steps only with all of it.
template <class F>
inline constexpr bool kNeedsAllState = std::is_same_v<F, Adagrad>;

template <class F, class Options, class Visit>
void visit_options(Options& options, Visit&& visit) {
  visit("lr", options.lr());
  if constexpr (kIsAdam<F>) {
    visit("betas", options.betas());
    visit("eps", options.eps());
    visit("weight_decay", options.weight_decay());
    visit("amsgrad", options.amsgrad());
  } else if constexpr (std::is_same_v<F, Sgd>) {
    visit("momentum", options.momentum());
    visit("dampening", options.dampening());
    visit("weight_decay", options.weight_decay());
    visit("nesterov", options.nesterov());
  } else if constexpr (std::is_same_v<F, Adagrad>) {
    visit("lr_decay", options.lr_decay());
    visit("weight_decay", options.weight_decay());
    visit("initial_accumulator_value", options.initial_accumulator_value());
    visit("eps", options.eps());
  } else if constexpr (std::is_same_v<F, RmsProp>) {
    visit("alpha", options.alpha());
    visit("eps", options.eps());
    visit("weight_decay", options.weight_decay());
    visit("momentum", options.momentum());
    visit("centered", options.centered());
  } else {
    visit("max_iter", options.max_iter());
    visit("max_eval", options.max_eval());
    visit("tolerance_grad", options.tolerance_grad());
    visit("tolerance_change", options.tolerance_change());
    visit("history_size", options.history_size());
    visit("line_search_fn", options.line_search_fn());
  }
}

template <class F, class State, class Visit>
void visit_state(State& state, Visit&& visit) {
  if constexpr (kIsAdam<F>) {
    visit("step", state.step(), Kind::plain);
    visit("exp_avg", state.exp_avg(), Kind::required);
    visit("exp_avg_sq", state.exp_avg_sq(), Kind::required);
    visit("max_exp_avg_sq", state.max_exp_avg_sq(), Kind::optional);
  } else if constexpr (std::is_same_v<F, Sgd>) {
    visit("momentum_buffer", state.momentum_buffer(), Kind::optional);
  } else if constexpr (std::is_same_v<F, Adagrad>) {
    visit("step", state.step(), Kind::plain);
    visit("sum", state.sum(), Kind::required);
  } else if constexpr (std::is_same_v<F, RmsProp>) {
    visit("step", state.step(), Kind::plain);
    visit("square_avg", state.square_avg(), Kind::required);
    visit("momentum_buffer", state.momentum_buffer(), Kind::optional);
    visit("grad_avg", state.grad_avg(), Kind::optional);
  } else {
    visit("func_evals", state.func_evals(), Kind::plain);
    visit("n_iter", state.n_iter(), Kind::plain);
    visit("t", state.t(), Kind::plain);
    visit("prev_loss", state.prev_loss(), Kind::plain);
    visit("d", state.d(), Kind::plain);
    visit("H_diag", state.H_diag(), Kind::plain);
    visit("prev_flat_grad", state.prev_flat_grad(), Kind::plain);
    visit("old_dirs", state.old_dirs(), Kind::plain);
    visit("old_stps", state.old_stps(), Kind::plain);
    visit("ro", state.ro(), Kind::plain);
    visit("al", state.al(), Kind::plain);
  }
}

/// Calls `use(Family{})` for the kind whose options these are; false when they are of a class unknown here.
template <class Use>
bool with_family(const torch::optim::OptimizerOptions& options, Use&& use) {
  auto attempt = [&]<class F>(F family) {
    if (!dynamic_cast<const typename F::Options*>(&options)) return false;
    use(family);
    return true;
  };
  return attempt(Sgd{}) || attempt(Adam{}) || attempt(AdamW{}) || attempt(Adagrad{}) || attempt(RmsProp{}) ||
         attempt(Lbfgs{});
}

}  // namespace fabric::optimizer_fields

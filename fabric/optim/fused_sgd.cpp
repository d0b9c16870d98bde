#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/_fused_sgd.h>

#include <fabric/optim/fused.h>

#include "fabric/optim/fused_lists_internal.h"

namespace fabric::optim {
namespace detail {

struct SgdBucket : BucketBase {
  using Options = SGDOptions;
  using State = torch::optim::SGDParamState;

  SgdBucket(std::size_t group, const at::Tensor& first, const Options& options, const State* state)
      : BucketBase(group, first), momentum(options.momentum() != 0), first_step(is_first(state)) {}

  // The first step with momentum writes the buffers, later ones read them.
  static bool is_first(const State* state) { return state && !state->momentum_buffer().defined(); }
  static bool needs_state(const Options& options) { return options.momentum() != 0; }
  static std::unique_ptr<State> made(const at::Tensor&) { return std::make_unique<State>(); }

  bool joins(const Options&, const State* state) const { return is_first(state) == first_step; }

  void add(const at::Tensor& parameter, State* state) {
    parameters.push_back(parameter);
    if (!state) return;
    // The state gets its buffer when that has been written.
    buffers.push_back(first_step ? at::empty_like(parameter) : laid_out_like(parameter, state->momentum_buffer()));
    if (!first_step) state->momentum_buffer(buffers.back());
    states.push_back(state);
  }

  bool holds(std::size_t index, const Options& options, const State* state) const {
    if ((options.momentum() != 0) != momentum || first_step) return false;
    return !momentum || (state && state == states[index] && state->momentum_buffer().is_same(buffers[index]) &&
                         same_layout(parameters[index], buffers[index]));
  }

  void run(const Options& options) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    at::_fused_sgd_(parameters, gradients, buffers, options.weight_decay(), options.momentum(), options.lr(),
                    options.dampening(), options.nesterov(), /*maximize=*/false, first_step);
    bump_versions();
    if (!first_step) return;
    for (std::size_t i = 0; i < states.size(); ++i) states[i]->momentum_buffer(buffers[i]);
  }

  bool momentum;
  bool first_step;
  std::vector<at::Tensor> buffers;
  std::vector<State*> states;
};

struct SgdLists : Lists<SgdBucket> {};

}  // namespace detail

at::Tensor SGD::step(LossClosure closure) {
  return detail::fused_step(
      lists_, param_groups_, state_, closure,
      [](detail::SgdBucket& bucket, const SGDOptions& options) { bucket.run(options); },
      [&] { torch::optim::SGD::step(); });
}

}  // namespace fabric::optim

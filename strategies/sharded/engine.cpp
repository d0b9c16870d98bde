// When the units of one model are gathered and let go of, and when their gradients are reduced.
//
// Source: Y. Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel" (VLDB 2023); S.
// Rajbhandari et al., "ZeRO" (SC 2020). Other than there no module is wrapped: the dispatcher says which operator
// touches a parameter (touch.cpp), in the forward pass, in the backward pass, and in a region that is computed again.
//
// A unit is gathered at its first touch, and let go of when another one is touched; the last one of a forward pass
// stays for the backward pass that begins with it. A gradient is caught on its way to `.grad`, which holds this rank's
// part only; when the last one that the forward passes announce is there, the unit is reduced. What is left is done
// when autograd has ended, for which a callback is queued with the first touch or gradient of a backward pass.
//
// Invariants:
// - Collectives follow from touches and gradients alone, so ranks that compute the same make the same ones; before
// each,
//   the ranks compare the unit's name where the group's check is on.
// - At the end of a backward pass the ranks tell one another which units have gradients left, so that a parameter may
// be
//   used by some of them only.
// - What is gathered ahead of its touch follows from the order of the last pass of the kind, and so from touches as
//   well. It is given up when something else is touched.
// - Outside of passes nothing is gathered but what the last forward pass left for its backward pass; `release` ends
// that.
#include "strategies/sharded/engine.h"

#include <algorithm>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/graph_task.h>

#include <fabric/base/error.h>

#include "strategies/sharded/touch.h"

namespace fabric::sharded {
namespace {

constexpr const char* kLeftOver = "end of a backward pass";

bool is_among(c10::ArrayRef<Unit*> units, const Unit* unit) {
  return std::find(units.begin(), units.end(), unit) != units.end();
}

}  // namespace

struct Engine::Link {
  Engine* engine;
};

// Takes the gradient before it is added to `.grad`, which has another shape.
struct Engine::Capture : torch::autograd::FunctionPreHook {
  Capture(std::shared_ptr<Link> link, Unit& unit, Parameter& parameter)
      : link(std::move(link)), unit(unit), parameter(parameter) {}
  torch::autograd::variable_list operator()(const torch::autograd::variable_list& gradients) override {
    if (!link->engine)
      throw MisuseError("a gradient came to a parameter whose sharded model is gone: keep what setup returned");
    if (!gradients.at(0).defined()) return gradients;
    link->engine->gradient_arrived(unit, parameter, gradients[0]);
    return {at::Tensor()};
  }
  std::shared_ptr<Link> link;
  Unit& unit;
  Parameter& parameter;
};

Engine::Engine(Settings settings)
    : settings_(std::move(settings)),
      pool_(settings_.shards, settings_.device),
      link_(std::make_shared<Link>(Link{this})) {}

Engine::~Engine() { link_->engine = nullptr; }

std::shared_ptr<Engine> Engine::make(Settings settings) {
  watch_touches();
  return std::shared_ptr<Engine>(new Engine(std::move(settings)));
}

void Engine::add_unit(const UnitPlan& plan) {
  units_.push_back(std::make_unique<Unit>(*this, plan, settings_, pool_));
  for (const auto& parameter : units_.back()->parameters())
    by_tensor_.emplace(parameter->tensor.unsafeGetTensorImpl(), parameter.get());
}

bool Engine::is_idle() const {
  return settings_.contributions() == 1 && !settings_.reduce_type &&
         std::all_of(units_.begin(), units_.end(), [](const auto& unit) { return unit->is_resident(); });
}

const Parameter* Engine::find(const at::Tensor& tensor) const {
  auto found = by_tensor_.find(tensor.unsafeGetTensorImpl());
  return found == by_tensor_.end() ? nullptr : found->second;
}

// --- forward

Scope Engine::begin_forward() {
  if (summoned_ && at::GradMode::is_enabled())
    throw MisuseError(
        "the model was called for training while `summon` lends out its parameters: close that scope first");
  for (const auto& unit : units_)
    if (const auto* parameter = is_idle() ? nullptr : unit->untold(); parameter && at::GradMode::is_enabled())
      throw MisuseError("parameter " + parameter->name +
                        " requires a gradient now, but did not when the strategy was last told: its gradient would not "
                        "be synchronised. Call parameters_changed() of what setup returned, on every rank, whenever "
                        "requires_grad was changed");
  // A backward pass that threw outside of fabric.backward left it.
  if (backward_ != -1 && !in_backward()) abandon();
  if (at::GradMode::is_enabled() && !in_backward() && std::exchange(uses_are_old_, false))
    for (auto& unit : units_) unit->forget_use();
  if (!summoned_)
    for (auto& unit : units_) unit->show_whole();
  if (forward_depth_ == 0 && !in_backward()) forward_order_.begin();
  ++forward_depth_;
  forward_failed_ = true;
  return Scope([self = shared_from_this()] {
    if (--self->forward_depth_ > 0) return;
    if (self->in_backward() || self->summoned_) return;
    self->drop_what_is_ahead();
    if (self->forward_failed_ || !at::GradMode::is_enabled()) self->let_all_go();
  });
}

void Engine::touch(c10::ArrayRef<Unit*> units) {
  const bool backward = in_backward();
  if (forward_depth_ == 0 && !backward) refuse_touch(*units.front());
  if (backward) expect_end_of_backward();
  let_go_of_others(units);
  Order& order = backward ? backward_order_ : forward_order_;
  bool is_new = false;
  for (Unit* unit : units) {
    if (!unit->is_gathered()) {
      if (!is_among(ahead_, unit)) drop_what_is_ahead();
      unit->gather();
      std::erase(ahead_, unit);
      if (unit->is_gathered()) order.note(*unit), is_new = true;
    }
    if (!is_among(present_, unit)) present_.push_back(unit);
  }
  // The unit that stayed from the forward pass is the first of the backward pass.
  if (backward && !is_new && order.now.empty()) order.note(*units.back()), is_new = true;
  if (!is_new) return;
  if (backward ? settings_.backward == Settings::Backward::prefetch_before : settings_.forward_prefetch) gather_ahead();
}

// --- ahead

void Engine::Order::begin() {
  if (!now.empty()) before.swap(now);
  now.clear();
  place = 0;
}

void Engine::Order::note(Unit& unit) {
  now.push_back(&unit);
  auto found = std::find(before.begin() + static_cast<std::ptrdiff_t>(place), before.end(), &unit);
  if (found != before.end()) place = static_cast<std::size_t>(found - before.begin()) + 1;
}

void Engine::gather_ahead() {
  const Order& order = in_backward() ? backward_order_ : forward_order_;
  for (std::size_t i = order.place; i < order.before.size() && ahead_.size() < settings_.ahead; ++i) {
    Unit* unit = order.before[i];
    if (unit->is_gathered() || is_among(ahead_, unit)) continue;
    unit->begin_gather();
    ahead_.push_back(unit);
  }
}

void Engine::drop_what_is_ahead() {
  for (Unit* unit : ahead_) unit->let_go();
  ahead_.clear();
}

void Engine::let_go_of_others(c10::ArrayRef<Unit*> needed) {
  if (!settings_.reshard_after_forward) return;
  std::erase_if(present_, [&](Unit* unit) {
    if (is_among(needed, unit)) return false;
    unit->let_go();
    return true;
  });
}

void Engine::let_all_go() {
  for (auto& unit : units_) unit->show_pieces();
  present_.clear();
  ahead_.clear();
}

void Engine::release() {
  if (summoned_)
    throw MisuseError(
        "whole parameters are lent out by `summon`: close that scope before an optimizer's step, a save or a load");
  if (forward_depth_ == 0 && !in_backward()) let_all_go();
}

// --- backward

bool Engine::in_backward() const { return torch::autograd::get_current_graph_task_id() != -1; }

void Engine::expect_end_of_backward() {
  const int pass = torch::autograd::get_current_graph_task_id();
  if (backward_ == pass) return;
  if (summoned_)
    throw MisuseError("a backward pass began while `summon` lends out the model's parameters: close that scope first");
  backward_ = pass;
  drop_what_is_ahead();
  backward_order_.begin();
  for (auto& unit : units_) unit->show_whole();
  torch::autograd::Engine::get_default_engine().queue_callback([link = link_, pass] {
    if (link->engine && link->engine->backward_ == pass) link->engine->backward_ended();
  });
}

void Engine::gradient_arrived(Unit& unit, Parameter& parameter, at::Tensor gradient) {
  expect_end_of_backward();
  at::NoGradGuard no_grad;
  unit.take_gradient(parameter, gradient.detach(), local_depth_ == 0);
  if (unit.is_complete()) finish_unit(unit);
}

void Engine::finish_unit(Unit& unit) {
  if (local_depth_ > 0)
    unit.keep_gradients();
  else
    unit.reduce();
  if (local_depth_ > 0 && !settings_.reshard_after_forward) return;
  unit.let_go();
  std::erase(present_, &unit);
  if (settings_.backward == Settings::Backward::prefetch_after) gather_ahead();
}

void Engine::backward_ended() {
  at::NoGradGuard no_grad;
  if (local_depth_ > 0) {
    for (auto& unit : units_) unit->keep_gradients();
  } else {
    at::Tensor left = at::zeros({static_cast<std::int64_t>(units_.size())}, at::kInt);
    auto* flags = left.mutable_data_ptr<int>();
    for (std::size_t i = 0; i < units_.size(); ++i) flags[i] = units_[i]->has_gradients();
    if (settings_.all.size() > 1) {
      settings_.all.require_same(kLeftOver, "");
      settings_.all.all_reduce_(left, ReduceOp::max);
    }
    // As autograd has it: the last first.
    for (std::size_t i = units_.size(); i-- > 0;)
      if (flags[i] != 0) units_[i]->reduce();
  }
  backward_ = -1;
  uses_are_old_ = true;
  if (local_depth_ == 0 || settings_.reshard_after_forward) let_all_go();
}

void Engine::abandon() {
  for (auto& unit : units_) unit->forget_arrived();
  backward_ = -1;
  uses_are_old_ = true;
  if (!summoned_) let_all_go();
}

Scope Engine::no_sync() {
  ++local_depth_;
  return Scope([self = shared_from_this()] { --self->local_depth_; });
}

void Engine::follow_requires_grad() {
  if (is_idle()) return;
  release();
  for (auto& unit : units_)
    unit->follow_requires_grad([this](Unit& owner, Parameter& parameter) {
      parameter.accumulator->add_pre_hook(std::make_unique<Capture>(link_, owner, parameter));
    });
}

void Engine::forget_kept_gradients(const at::Tensor& tensor) {
  auto found = by_tensor_.find(tensor.unsafeGetTensorImpl());
  if (found != by_tensor_.end()) const_cast<Parameter*>(found->second)->kept.reset();
}

// --- whole parameters for the user

Scope Engine::summon(const SummonOptions& options) {
  if (options.write_back && options.rank_zero_only)
    throw MisuseError(
        "summon: write_back and rank_zero_only exclude each other: what only rank 0 changed is no rank's piece. Let "
        "every rank make the same change");
  if (forward_depth_ > 0 || in_backward())
    throw MisuseError("summon was called inside of a forward or backward pass; call it outside");
  release();
  at::NoGradGuard no_grad;
  struct Lent {
    const Parameter* parameter;
    at::Tensor whole, gradient, own_gradient;
  };
  std::vector<Lent> lent;
  const bool keeps = !options.rank_zero_only || settings_.all.rank() == 0;
  for (auto& unit : units_)
    for (const auto& parameter : unit->parameters()) {
      Lent item{parameter.get(), unit->whole_of(*parameter), {}, parameter->tensor.grad()};
      if (options.with_gradients) {
        auto any = at::zeros({1}, at::kInt);
        any.fill_(item.own_gradient.defined() ? 1 : 0);
        if (settings_.shards.size() > 1) settings_.shards.all_reduce_(any, ReduceOp::max);
        if (any.item<int>() != 0) item.gradient = unit->whole_grad_of(*parameter);
      }
      if (keeps && parameter->whole.defined()) lent.push_back(std::move(item));
    }
  for (auto& item : lent) {
    swap_content(item.parameter->tensor, item.whole);
    if (options.with_gradients) item.parameter->tensor.mutable_grad() = item.gradient;
  }
  summoned_ = true;
  return Scope([self = shared_from_this(), lent = std::move(lent), options] {
    at::NoGradGuard no_grad;
    for (const auto& [parameter, whole, gradient, own_gradient] : lent) {
      const Cut& cut = parameter->cut;
      auto own_rows = [&](const at::Tensor& tensor) {
        return cut.is_split() ? tensor.narrow(0, cut.own_offsets()[0], cut.own_shape()[0]) : tensor;
      };
      if (options.write_back) {
        auto piece = parameter->flat_shard.as_strided(cut.own_shape(), cut.strides());
        piece.copy_(own_rows(parameter->tensor.detach()));
        const auto& changed = parameter->tensor.grad();
        if (options.with_gradients && own_gradient.defined() && changed.defined())
          at::Tensor(own_gradient).copy_(own_rows(changed));
      }
      swap_content(parameter->tensor, parameter->shard);
      if (options.with_gradients) parameter->tensor.mutable_grad() = own_gradient;
    }
    self->summoned_ = false;
  });
}

}  // namespace fabric::sharded

// Activation checkpointing without reentrant backward passes, as PyTorch's `use_reentrant=False` does it.
//
// While a region's forward pass runs, each tensor that autograd wants to save is replaced by an empty slot; the
// region's inputs are kept. When the backward pass asks for the first of them, the region runs again, and the k-th
// tensor that autograd saves then fills the k-th slot. With a policy, a client below autograd keeps the results of some
// operators in the first run and hands them out in the second, so that these are not executed again.
//
// LibTorch offers its hooks on saved tensors to Python alone, but asks the engine for them, and lets a program replace
// the engine. Ours is LibTorch's with that one function overridden.
//
// Invariants:
// - Slots belong to saved variables and are referred to weakly: what a graph no longer needs is not filled.
// - Hooks of the first run own the frame, those of the second only point to it: no circle.
// - Autocast keeps no casts of weights inside of a region: the second run would not find those of the first.
// - Inputs are held as autograd holds saved tensors. So a region inside of a region keeps nothing for itself, and a
//   change of an input in place is found.
#include "strategies/activation/frame.h"

#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>
#include <dlfcn.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/saved_variable_hooks.h>

#include <sstream>

#include <fabric/base/error.h>
#include <fabric/base/scope.h>

namespace fabric::detail::activation {
namespace {

using torch::autograd::SavedVariableHooks;

// Ends a second run that has all it is run for. No std::exception, so that a region's own handlers let it pass.
struct Enough {};

struct FirstRunHooks : SavedVariableHooks {
  explicit FirstRunHooks(std::shared_ptr<CheckpointFrame> frame) : frame(std::move(frame)) {}
  void call_pack_hook(const at::Tensor& tensor) override { slot = frame->add_slot(tensor); }
  at::Tensor call_unpack_hook() override { return frame->content_of(*slot); }
  std::shared_ptr<CheckpointFrame> frame;
  std::shared_ptr<Slot> slot;
};

struct SecondRunHooks : SavedVariableHooks {
  explicit SecondRunHooks(CheckpointFrame* frame) : frame(frame) {}
  void call_pack_hook(const at::Tensor& tensor) override {
    frame->fill_next(tensor);
    value = tensor.detach();
  }
  at::Tensor call_unpack_hook() override { return value; }
  CheckpointFrame* frame;
  at::Tensor value;
};

struct CheckpointingEngine : torch::autograd::Engine {
  // LibTorch starts the threads of the first engine that runs, one for each device, and of no other. So those of its
  // own engine are started, where they were not, and then these; both wait until there is work.
  CheckpointingEngine() {
    Engine::get_base_engine().initialize_device_threads_pool();
    start_device_threads();
  }
  std::unique_ptr<SavedVariableHooks> get_default_saved_variable_hooks() override {
    if (!present.frame) return Engine::get_default_saved_variable_hooks();
    if (present.again) return std::make_unique<SecondRunHooks>(present.frame);
    return std::make_unique<FirstRunHooks>(present.frame->shared_from_this());
  }
  // Never destroyed: its threads may run until the process ends.
  static torch::autograd::Engine& instance() {
    static auto* engine = new CheckpointingEngine;
    return *engine;
  }
};

}  // namespace

void require_engine() {
  static const bool in_python = dlopen("libtorch_python.so", RTLD_LAZY | RTLD_NOLOAD) != nullptr;
  if (in_python)
    throw MisuseError(
        "checkpoint does not work inside Python, whose autograd engine cannot be replaced; use "
        "torch.utils.checkpoint there");
  static const bool installed = (torch::autograd::set_default_engine_stub(&CheckpointingEngine::instance), true);
  static_cast<void>(installed);
}

std::string Meta::text() const {
  std::ostringstream text;
  text << at::IntArrayRef(sizes) << ' ' << type << " on " << device;
  return text.str();
}

KeptInput::KeptInput(const at::Tensor& tensor, bool offload)
    : device_(tensor.device()),
      requires_grad_(tensor.requires_grad()),
      bytes_(static_cast<std::int64_t>(tensor.nbytes())) {
  if (offload && !tensor.is_cpu())
    apart_ = tensor.detach().to(at::kCPU);
  else
    saved_ = torch::autograd::SavedVariable(tensor, /*is_output=*/false);
}
at::Tensor KeptInput::content() const { return apart_.defined() ? apart_.to(device_) : saved_.unpack(); }
at::Tensor KeptInput::leaf() const { return content().detach().requires_grad_(requires_grad_); }
void KeptInput::detach_from_original() {
  if (apart_.defined()) return;
  apart_ = content().detach().clone();
  saved_ = {};
}

CheckpointFrame::CheckpointFrame(const CheckpointOptions& options, const Devices& devices)
    : options_(options), early_stop_(options.early_stop.value_or(!options.policy)), devices_(devices) {
  if (options_.preserve_rng_state) random_.emplace(devices);
  surroundings_.emplace(devices);
  if (options_.policy || options_.report)
    kept_ = std::make_shared<KeptResults>(options_, options_.policy ? options_.policy() : nullptr, devices);
}

const std::shared_ptr<KeptResults>& CheckpointFrame::kept_of_save_regions() {
  if (!kept_of_save_regions_) kept_of_save_regions_ = std::make_shared<KeptResults>(options_, nullptr, devices_);
  return kept_of_save_regions_;
}

void SaveRegionClient::operator_called(dispatch::OperatorCall& call) {
  const auto [frame, again] = present;
  // Where all operators are looked at, another client does so.
  if (!frame || frame->kept()) return call.proceed();
  KeptResultsClient(frame->kept_of_save_regions(), again).operator_called(call);
}

std::size_t CheckpointFrame::keep_input(const at::Tensor& tensor) {
  // What an outer region keeps, it keeps where it wants to.
  inputs_.emplace_back(tensor, options_.offload && !present.frame);
  return inputs_.size() - 1;
}

void CheckpointFrame::report_inputs() const {
  if (!options_.report) return;
  for (const auto& input : inputs_) options_.report->input_bytes += input.bytes();
}

std::shared_ptr<Slot> CheckpointFrame::add_slot(const at::Tensor& tensor) {
  auto slot = std::make_shared<Slot>();
  slots_.push_back(slot);
  metas_.emplace_back(tensor);
  return slot;
}

void CheckpointFrame::forget_slots_from(std::size_t count) {
  slots_.resize(count);
  metas_.erase(metas_.begin() + static_cast<long>(count), metas_.end());
}

at::Tensor CheckpointFrame::content_of(Slot& slot) {
  if (!slot.value.defined()) run_again();
  if (!slot.value.defined())
    throw MisuseError(
        "checkpoint: its region saved fewer tensors when it ran again than the first time. The function "
        "must do the same both times");
  return std::exchange(slot.value, at::Tensor());
}

void CheckpointFrame::fill_next(const at::Tensor& tensor) {
  std::size_t index = filled_++;
  if (index >= slots_.size())
    throw MisuseError("checkpoint: its region saved more tensors when it ran again than the first time (" +
                      std::to_string(slots_.size()) + "). The function must do the same both times");
  if (options_.determinism_check && !metas_[index].fits(tensor))
    throw MisuseError("checkpoint: tensor number " + std::to_string(index) + " that its region saved was " +
                      metas_[index].text() + " in the first run and is " + Meta(tensor).text() +
                      " in the second. The function must do the same both times");
  if (auto slot = slots_[index].lock()) slot->value = tensor.detach();
  if (early_stop_ && filled_ == slots_.size()) throw Enough();
}

void CheckpointFrame::run_again() {
  auto self = shared_from_this();
  c10::AutoGradMode with_grad(true);
  std::size_t next = 0;
  region_->for_each_input([&](at::Tensor& tensor) { tensor = inputs_[next++].leaf(); });
  Scope forget([&] { region_->for_each_input([](at::Tensor& tensor) { tensor = at::empty({0}, tensor.options()); }); });
  Scope random = random_ ? random_->restore() : Scope();
  Scope surroundings = surroundings_->restore();
  filled_ = 0;
  region_->prepare();
  PresentFrame again({this, true});
  if (kept_of_save_regions_) kept_of_save_regions_->begin_second_run();
  std::optional<dispatch::Activation> handing_out;
  if (kept_ && kept_->holds_any()) {
    kept_->begin_second_run();
    handing_out.emplace(dispatch::Level::below_autograd, std::make_shared<KeptResultsClient>(kept_, true));
  }
  try {
    region_->run_again();
  } catch (const Enough&) {
  }
}

}  // namespace fabric::detail::activation

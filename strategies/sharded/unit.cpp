// One unit of parameters: its memory and its state.
//
// All pieces of one type lie in one storage (the shards), all gathered parameters in another, whose memory is there
// only while the unit is gathered. A parameter's content is a tensor in one of the two: swapping contents never touches
// the tensor that the user, the module's dictionary and the optimizer hold. From the begin of a forward pass to the end
// of its backward pass it is the whole one, with or without memory.
//
// Invariants:
// - Contents are marked (fabric/dispatch/operator_hooks.h): no operator reads them without the engine's knowing.
// - Writes to the gathered storage go through aliases with version counters of their own: a graph that saved a
//   parameter, or a view of it, sees no change when the unit is gathered again.
// - Gradient accumulators are made while the content is the whole one, so that their shape and type are its; the unit
//   keeps them alive.
#include "strategies/sharded/unit.h"

#include <algorithm>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/function.h>

#include <fabric/dispatch/operator_hooks.h>

#include "fabric/torch/pages_internal.h"
#include "strategies/sharded/engine.h"

namespace fabric::sharded {
namespace {

constexpr std::int64_t kAlignment = 64;
// Below this a collective of its own costs more than the copy that it saves.
constexpr std::int64_t kLargeBytes = 128 << 10;

std::int64_t aligned(std::int64_t elements, at::ScalarType type) {
  auto step = std::max<std::int64_t>(kAlignment / static_cast<std::int64_t>(c10::elementSize(type)), 1);
  return (elements + step - 1) / step * step;
}

}  // namespace

void swap_content(const at::Tensor& tensor, const at::Tensor& content) {
  tensor.unsafeGetTensorImpl()->shallow_copy_from(content.getIntrusivePtr());
}

std::optional<Shard> Parameter::box() const {
  if (!cut.is_split()) return std::nullopt;
  return Shard{cut.shape(), cut.own_offsets()};
}

Unit::Unit(Engine& engine, const UnitPlan& plan, const Settings& settings, BufferPool& pool)
    : engine_(engine), name_(plan.name), settings_(settings), pool_(pool) {
  c10::InferenceMode outside(false);
  at::NoGradGuard no_grad;
  lay_out(plan);
  for (auto& bundle : bundles_) move_in(*bundle);
}

Unit::~Unit() = default;

void Unit::lay_out(const UnitPlan& plan) {
  for (const auto& [name, tensor, owner, keeps_type] : plan.parameters) {
    auto type = tensor.scalar_type();
    auto compute = tensor.is_floating_point() && !keeps_type ? settings_.param_type.value_or(type) : type;
    auto made = std::make_unique<Parameter>(Parameter{.name = name,
                                                      .tensor = tensor,
                                                      .cut = {tensor, settings_.shards.size(), settings_.shards.rank()},
                                                      .type = type,
                                                      .compute_type = compute});
    auto found = std::find_if(bundles_.begin(), bundles_.end(),
                              [&](const auto& b) { return b->type == type && b->compute_type == compute; });
    if (found == bundles_.end()) {
      bundles_.push_back(std::make_unique<Bundle>(Bundle{.type = type, .compute_type = compute}));
      found = std::prev(bundles_.end());
    }
    Bundle& bundle = **found;
    const bool is_large = made->cut.padded() * made->itemsize() >= kLargeBytes;
    (!made->cut.is_split() ? bundle.uncut : is_large ? bundle.large : bundle.small).push_back(made.get());
    parameters_.push_back(std::move(made));
  }
}

// Small pieces come first and without gaps: they are sent as one.
void Unit::move_in(Bundle& bundle) {
  bundle.is_resident =
      settings_.shards.size() == 1 && bundle.type == bundle.compute_type && settings_.home_device == settings_.device;
  if (bundle.is_resident) return;
  std::int64_t end = 0, whole_end = 0;
  auto place = [&](Parameter& parameter, bool with_gap) {
    if (with_gap) end = aligned(end, bundle.type);
    parameter.offset = end;
    end += parameter.cut.piece();
    parameter.whole_offset = whole_end;
    whole_end = aligned(whole_end + parameter.cut.padded(), bundle.compute_type);
  };
  for (Parameter* parameter : bundle.small) place(*parameter, false);
  bundle.small_piece = end;
  for (Parameter* parameter : bundle.uncut) place(*parameter, true);
  for (Parameter* parameter : bundle.large) place(*parameter, true);
  bundle.gathered_elements = whole_end;

  bundle.shards = Home(this, settings_.home_device);
  bundle.gathered = Home(this, settings_.device);
  auto bytes = std::max<std::int64_t>(end * static_cast<std::int64_t>(c10::elementSize(bundle.type)), 1);
  auto zeros = [&] {
    if (settings_.home_device.is_cpu() && bytes >= kLeastPages) return pages({bytes});
    return at::zeros({bytes}, at::TensorOptions(settings_.home_device).dtype(at::kByte));
  };
  bundle.shards.fill(zeros());
  if (settings_.home_device.is_cpu()) bundle.grads = zeros();
  for (auto* list : {&bundle.small, &bundle.uncut, &bundle.large})
    for (Parameter* p : *list) {
      const Cut& cut = p->cut;
      p->flat_shard = bundle.shards.flat(p->type, cut.piece(), p->offset);
      p->flat_whole = bundle.gathered.flat(p->compute_type, cut.padded(), p->whole_offset);
      auto own = bundle.shards.tensor(p->type, cut.own_shape(), cut.strides(), p->offset);
      p->shard = dispatch::marked(own);
      p->whole = dispatch::marked(bundle.gathered.tensor(p->compute_type, cut.shape(), cut.strides(), p->whole_offset));
      at::Tensor content = p->tensor.detach();
      own.copy_(cut.is_split() ? content.narrow(0, cut.own_offsets()[0], own.size(0)) : content);
      swap_content(p->tensor, p->shard);
    }
}

void Unit::make_accumulator(Parameter& parameter) {
  const bool swapped = parameter.whole.defined() && !shows_whole_;
  if (swapped) swap_content(parameter.tensor, parameter.whole);
  parameter.accumulator = torch::autograd::impl::grad_accumulator(parameter.tensor);
  if (swapped) swap_content(parameter.tensor, parameter.shard);
}

bool Unit::is_resident() const {
  return std::all_of(bundles_.begin(), bundles_.end(), [](const auto& bundle) { return bundle->is_resident; });
}

template <class Visit>
void Unit::for_each_cut(Visit&& visit) {
  for (auto& parameter : parameters_)
    if (parameter->whole.defined()) visit(*parameter);
}

void Unit::show_whole() {
  if (std::exchange(shows_whole_, true)) return;
  for_each_cut([](Parameter& parameter) { swap_content(parameter.tensor, parameter.whole); });
}

void Unit::show_pieces() {
  let_go();
  if (!std::exchange(shows_whole_, false)) return;
  for_each_cut([](Parameter& parameter) { swap_content(parameter.tensor, parameter.shard); });
}

void Unit::let_go() {
  if (is_arriving_) give_up_gathers();
  if (!std::exchange(is_gathered_, false)) return;
  for (auto& bundle : bundles_)
    if (!bundle->is_resident) pool_.give(bundle->gathered.empty());
}

bool Unit::holds_gathered(const at::Tensor& tensor) const {
  const auto* storage = tensor.storage().unsafeGetStorageImpl();
  return std::any_of(bundles_.begin(), bundles_.end(), [&](const auto& bundle) {
    return !bundle->is_resident && bundle->gathered.storage().unsafeGetStorageImpl() == storage;
  });
}

void Unit::note_use(const at::Tensor& tensor) {
  for (auto& parameter : parameters_) {
    if (parameter->is_used || !parameter->is_trained || !parameter->whole.defined()) continue;
    if (tensor.storage().unsafeGetStorageImpl() != parameter->whole.storage().unsafeGetStorageImpl()) continue;
    auto at = tensor.storage_offset() - parameter->whole_offset;
    if (at >= 0 && at < std::max<std::int64_t>(parameter->cut.numel(), 1)) parameter->is_used = true;
  }
}

const Parameter* Unit::untold() const {
  for (const auto& parameter : parameters_)
    if (!parameter->is_trained && parameter->tensor.requires_grad()) return parameter.get();
  return nullptr;
}

bool Unit::is_complete() const {
  bool any = false;
  for (const auto& parameter : parameters_) {
    if (!parameter->is_trained) continue;
    if (parameter->arrived.defined())
      any = true;
    else if (parameter->is_used || !parameter->whole.defined())
      return false;
  }
  return any;
}

bool Unit::has_gradients() const {
  return std::any_of(parameters_.begin(), parameters_.end(),
                     [](const auto& p) { return p->arrived.defined() || p->kept.defined(); });
}

void Unit::keep_gradients() {
  at::NoGradGuard no_grad;
  for (auto& parameter : parameters_) {
    if (!parameter->arrived.defined()) continue;
    if (parameter->staged.defined()) parameter->arrived = parameter->arrived.clone();
    // Never in place: what arrived may be somebody else's as well.
    parameter->kept = parameter->kept.defined() ? parameter->kept + parameter->arrived : parameter->arrived;
    unstage(*parameter);
    parameter->arrived.reset();
  }
}

void Unit::forget_arrived() {
  for (auto& parameter : parameters_) {
    parameter->arrived.reset();
    unstage(*parameter);
  }
}

void Unit::forget_kept() {
  for (auto& parameter : parameters_) parameter->kept.reset();
}

void Unit::forget_use() {
  for (auto& parameter : parameters_) parameter->is_used = false;
}

at::Tensor Unit::whole_of(const Parameter& parameter, const at::Tensor& piece) const {
  const Cut& cut = parameter.cut;
  at::Tensor flat = piece;
  if (cut.is_split()) {
    auto pieces = settings_.shards.all_gather(piece);
    flat = at::empty({cut.padded()}, piece.options());
    for (int rank = 0; rank < cut.ranks(); ++rank) flat.narrow(0, rank * cut.piece(), cut.piece()).copy_(pieces[rank]);
  } else {
    flat = piece.clone();
  }
  return flat.as_strided(cut.shape(), cut.strides());
}

at::Tensor Unit::whole_of(const Parameter& parameter) const {
  if (!parameter.whole.defined()) return parameter.tensor.detach();
  return whole_of(parameter, parameter.flat_shard);
}

at::Tensor Unit::whole_grad_of(const Parameter& parameter) const {
  const at::Tensor& grad = parameter.tensor.grad();
  if (!parameter.whole.defined()) return grad;
  at::Tensor piece = at::zeros({parameter.cut.piece()}, parameter.flat_shard.options());
  if (grad.defined()) piece.as_strided(grad.sizes(), parameter.cut.strides()).copy_(grad);
  return whole_of(parameter, piece);
}

}  // namespace fabric::sharded

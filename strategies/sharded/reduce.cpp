// How a unit's gradients are averaged and cut. As in gathering, large ones travel alone, from where autograd made them
// if their form allows it; small ones in one message that also counts, for each parameter, the ranks that have a
// gradient: one without any on all ranks is left alone, as in one process.
//
// Sums are divided afterwards. In 16 bits of float16 they could overflow first, so there the larger half of the
// division comes before.
#include <cmath>
#include <utility>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>

#include <fabric/dispatch/operator_hooks.h>

#include "strategies/sharded/collective.h"
#include "strategies/sharded/unit.h"

namespace fabric::sharded {
namespace {

constexpr const char* kReduce = "reduction of gradients";
constexpr std::int64_t kAloneBytes = 128 << 10;

at::Tensor gradient_of(const Parameter& parameter) {
  at::Tensor gradient = parameter.arrived;
  if (parameter.kept.defined()) gradient = gradient.defined() ? parameter.kept + gradient : parameter.kept;
  return gradient.defined() && gradient.is_sparse() ? gradient.to_dense() : gradient;
}

}  // namespace

at::ScalarType Unit::reduced_type(const Parameter& parameter) const {
  const auto type = parameter.compute_type;
  return c10::isFloatingType(type) ? settings_.reduce_type.value_or(type) : type;
}

bool Unit::is_reduced_alone(const Parameter& parameter) const {
  const auto size = static_cast<std::int64_t>(c10::elementSize(reduced_type(parameter)));
  return parameter.cut.padded() * size >= kAloneBytes;
}

// On the CPU a large gradient is moved to where it is sent from as soon as it is there: whole ones that wait for the
// rest of their unit would spread over the heap, whose holes fit the next ones seldom.
void Unit::take_gradient(Parameter& parameter, at::Tensor gradient, bool at_once) {
  if (parameter.arrived.defined()) {
    if (parameter.staged.defined() && !gradient.is_sparse())
      parameter.arrived.add_(gradient);
    else
      parameter.arrived = parameter.arrived + gradient;
    return;
  }
  if (!at_once || !settings_.device.is_cpu() || settings_.all.size() == 1 || !is_reduced_alone(parameter) ||
      parameter.kept.defined() || gradient.layout() != at::kStrided) {
    parameter.arrived = std::move(gradient);
    return;
  }
  c10::InferenceMode outside(false);
  const Cut& cut = parameter.cut;
  const auto type = reduced_type(parameter);
  parameter.staged = pool_.take(cut.padded() * static_cast<std::int64_t>(c10::elementSize(type)));
  at::Tensor flat = typed(parameter.staged, type, cut.padded());
  parameter.arrived = flat.as_strided(cut.shape(), cut.strides());
  parameter.arrived.copy_(gradient);
  if (!cut.is_even()) flat.narrow(0, cut.numel(), cut.padded() - cut.numel()).zero_();
}

void Unit::unstage(Parameter& parameter) {
  if (parameter.staged.defined()) pool_.give(std::exchange(parameter.staged, {}));
}

struct Unit::Reduction {
  struct Part {
    Parameter* parameter;
    at::Tensor gradient;       // undefined: this rank has none
    at::Tensor sum;            // this rank's piece of it
    std::int64_t offset = -1;  // in the message of small ones
  };
  std::vector<Part> parts;
  Collectives works;
  std::vector<at::Tensor> borrowed;
  at::Tensor message;  // this rank's piece of the small ones, then the counts
  std::int64_t counts = 0;
  double divisor = 1;
};

void Unit::start_reduction(Bundle& bundle, Reduction& reduction) {
  const auto type = c10::isFloatingType(bundle.compute_type) ? settings_.reduce_type.value_or(bundle.compute_type)
                                                             : bundle.compute_type;
  const auto size = static_cast<std::int64_t>(c10::elementSize(type));
  const auto contributions = static_cast<double>(settings_.contributions());
  double first = 1;
  if (type == at::kHalf)
    while (first * first < contributions) first *= 2;
  reduction.divisor = contributions / first;
  auto borrow = [&](std::int64_t elements) {
    reduction.borrowed.push_back(pool_.take(elements * size));
    return typed(reduction.borrowed.back(), type, elements);
  };

  std::int64_t piece = 0;
  for (auto* list : {&bundle.small, &bundle.uncut, &bundle.large})
    for (Parameter* parameter : *list) {
      if (!parameter->is_trained) continue;
      Reduction::Part part{parameter, gradient_of(*parameter), {}};
      if (part.gradient.defined() && first != 1) part.gradient = part.gradient / first;
      if (parameter->cut.padded() * size < kAloneBytes) {
        part.offset = piece;
        piece += parameter->cut.piece();
      }
      reduction.parts.push_back(std::move(part));
    }
  if (reduction.parts.empty()) return;

  const std::int64_t ranks = settings_.shards.size();
  const auto count = static_cast<std::int64_t>(reduction.parts.size());
  reduction.counts = piece;
  at::Tensor sent = borrow(ranks * (piece + count)).view({ranks, piece + count}).zero_();
  for (std::int64_t i = 0; i < count; ++i) {
    auto& part = reduction.parts[static_cast<std::size_t>(i)];
    if (!part.gradient.defined()) continue;
    sent.select(1, piece + i).fill_(1);
    if (part.offset < 0) continue;
    const Cut& cut = part.parameter->cut;
    for (int rank = 0; rank < ranks; ++rank) {
      if (cut.elements(rank) == 0) continue;
      auto shape = cut.shape();
      if (cut.is_split()) shape[0] = cut.rows(rank);
      at::Tensor place = sent.select(0, rank).narrow(0, part.offset, cut.elements(rank));
      place.as_strided(shape, cut.strides())
          .copy_(cut.is_split() ? part.gradient.narrow(0, cut.first_row(rank), shape[0]) : part.gradient);
    }
  }
  reduction.message = borrow(piece + count);
  reduction.works.reduce_scatter(settings_.shards, kReduce, reduction.message, sent.view({-1}));

  for (auto& part : reduction.parts) {
    if (part.offset >= 0) continue;
    Parameter& parameter = *part.parameter;
    const Cut& cut = parameter.cut;
    const at::Tensor& gradient = part.gradient;
    at::Tensor input;
    const bool is_staged = gradient.defined() && parameter.staged.defined() &&
                           gradient.const_data_ptr() == parameter.staged.const_data_ptr();
    if (is_staged || (gradient.defined() && gradient.scalar_type() == type && cut.is_even() &&
                      gradient.strides() == cut.strides())) {
      input = gradient.as_strided({cut.padded()}, {1});
    } else {
      input = borrow(cut.padded());
      if (gradient.defined()) {
        input.narrow(0, cut.numel(), cut.padded() - cut.numel()).zero_();
        input.as_strided(cut.shape(), cut.strides()).copy_(gradient);
      } else {
        input.zero_();
      }
    }
    // Straight to where `.grad` will show it, unless there is something to add to.
    const bool in_place =
        type == parameter.type && settings_.home_device == settings_.device && !parameter.tensor.grad().defined();
    if (in_place) give_grad_memory(bundle, parameter);
    part.sum = in_place ? parameter.grad_memory : borrow(cut.piece());
    reduction.works.reduce_scatter(settings_.shards, kReduce, part.sum, input);
  }
}

// Of all parameters together where memory is taken as it is touched: made one by one in the first backward pass, they
// would lie among what comes and goes there.
void Unit::give_grad_memory(const Bundle& bundle, Parameter& parameter) const {
  if (parameter.grad_memory.defined()) return;
  const std::int64_t piece = parameter.cut.piece();
  parameter.grad_memory =
      bundle.grads.defined()
          ? bundle.grads.narrow(0, parameter.offset * parameter.itemsize(), piece * parameter.itemsize())
                .view(parameter.type)
          : at::zeros({piece}, at::TensorOptions(settings_.home_device).dtype(parameter.type));
}

void Unit::finish_reduction(const Bundle& bundle, Reduction& reduction) {
  if (reduction.parts.empty()) return;
  reduction.works.wait();
  if (settings_.replicas.size() > 1) {
    reduction.works.all_reduce(settings_.replicas, kReduce, reduction.message);
    for (auto& part : reduction.parts)
      if (part.offset < 0) reduction.works.all_reduce(settings_.replicas, kReduce, part.sum);
    reduction.works.wait();
  }
  for (std::size_t i = 0; i < reduction.parts.size(); ++i) {
    auto& part = reduction.parts[i];
    Parameter& parameter = *part.parameter;
    // Where this rank has a gradient the count need not be looked at, for which a device would be waited.
    if (!part.gradient.defined() &&
        reduction.message[reduction.counts + static_cast<std::int64_t>(i)].item<double>() == 0)
      continue;
    const Cut& cut = parameter.cut;
    if (part.offset >= 0) part.sum = reduction.message.narrow(0, part.offset, cut.piece());
    if (reduction.divisor != 1) part.sum.div_(reduction.divisor);
    at::Tensor& grad = parameter.tensor.mutable_grad();
    at::Tensor own = part.sum.as_strided(cut.own_shape(), cut.strides());
    if (grad.defined()) {
      grad.add_(own.to(grad.device(), grad.scalar_type()));
      continue;
    }
    give_grad_memory(bundle, parameter);
    if (!parameter.grad_memory.is_same(part.sum)) parameter.grad_memory.copy_(part.sum);
    // No view in autograd's eyes: LibTorch's zero_grad detaches gradients in place.
    if (!parameter.own_grad.defined())
      parameter.own_grad = dispatch::unmarked(parameter.grad_memory.as_strided(cut.own_shape(), cut.strides()));
    grad = parameter.own_grad;
  }
  for (auto& buffer : reduction.borrowed) pool_.give(std::move(buffer));
}

void Unit::reduce() {
  c10::InferenceMode outside(false);
  at::NoGradGuard no_grad;
  if (settings_.all.size() > 1) settings_.all.require_same(kReduce, name_);
  for (auto& bundle : bundles_) {
    Reduction reduction;
    try {
      together(settings_.all, kReduce, [&] {
        start_reduction(*bundle, reduction);
        finish_reduction(*bundle, reduction);
      });
    } catch (...) {
      for (auto& buffer : reduction.borrowed) pool_.lose(std::move(buffer));
      for (auto& parameter : parameters_) pool_.lose(std::exchange(parameter->staged, {}));
      throw;
    }
  }
  forget_arrived();
  forget_kept();
}

}  // namespace fabric::sharded

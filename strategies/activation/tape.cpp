// A region without a function to call: the operators of its first run, which are called again one by one.
//
// The model's own code is run once. What it computed from values, on the host, stands in the tape as it was; what it
// wrote into memory by itself cannot be seen. So only what gradients flow through is recorded: other tensors (masks,
// positions, indices) are kept where a recorded operator needs them.
//
// Invariants:
// - A tensor counts as made by the region while it is the object, the version and the node of the graph that it was.
//   Whatever else it became meanwhile, it is kept as an input.
// - Recorded operators change nothing but what the region made: one that writes elsewhere ends the region before it.
// - Hooks on saved tensors are there within recorded operators only. What others save stays saved.
#include "strategies/activation/tape.h"

#include <algorithm>
#include <optional>

#include <ATen/core/stack.h>
#include <torch/csrc/autograd/variable.h>

namespace fabric::detail::activation {
namespace {

std::uint32_t version_of(const at::Tensor& tensor) {
  return tensor.is_inference() ? 0 : static_cast<std::uint32_t>(tensor._version());
}

const void* node_of(const at::Tensor& tensor) {
  const auto* meta = torch::autograd::impl::get_autograd_meta(tensor);
  return meta ? static_cast<const void*>(meta->grad_fn_.get()) : nullptr;
}

c10::weak_intrusive_ptr<c10::TensorImpl> weak(const at::Tensor& tensor) {
  return c10::weak_intrusive_ptr<c10::TensorImpl>(tensor.getIntrusivePtr());
}

const c10::StorageImpl* storage_of(const at::Tensor& tensor) {
  return tensor.has_storage() ? tensor.storage().unsafeGetStorageImpl() : nullptr;
}

template <class Visit>
void for_each_written(const dispatch::OperatorCall& call, Visit&& visit) {
  const auto& schema = call.op().schema();
  const auto values = call.arguments();
  for (std::size_t i = 0; i < values.size(); ++i)
    if (const auto* alias = schema.arguments()[i].alias_info(); alias && alias->isWrite())
      for_each_tensor_in(values[i], [&](const at::Tensor& tensor) {
        if (tensor.defined()) visit(tensor);
      });
}

// From the last use on, what the region made is not needed.
std::vector<std::uint32_t> last_uses(const Tape& tape) {
  std::vector<std::uint32_t> last(tape.made);
  for (std::uint32_t i = 0; i < tape.steps.size(); ++i) {
    const auto& step = tape.steps[i];
    std::fill_n(last.begin() + step.made, step.count, i);
    for (const auto& argument : step.arguments)
      for (const auto& source : argument.sources)
        if (source.kind == Source::Kind::made) last[source.index] = i;
  }
  return last;
}

}  // namespace

void Tape::for_each_input(const std::function<void(at::Tensor&)>& visit) {
  inputs_.resize(frame_.input_count());
  for (auto& input : inputs_) visit(input);
}

void Tape::prepare() {
  copies_.clear();
  for (const auto& step : steps)
    for (const auto& argument : step.arguments)
      if (argument.is_copied) {
        const Source& source = argument.sources.front();
        copies_.push_back(source.kind == Source::Kind::input ? inputs_[source.index].clone() : source.fixed.clone());
      }
}

void Tape::run_again() {
  std::vector<at::Tensor> values(made);
  const auto last = last_uses(*this);
  std::vector<std::vector<std::uint32_t>> done(steps.size());
  for (std::uint32_t value = 0; value < made; ++value) done[last[value]].push_back(value);
  auto tensor_of = [&](const Source& source) {
    switch (source.kind) {
      case Source::Kind::fixed:
        return source.fixed;
      case Source::Kind::input:
        return inputs_[source.index];
      case Source::Kind::made:
        return values[source.index];
      case Source::Kind::absent:
        break;
    }
    return at::Tensor();
  };
  torch::jit::Stack stack;
  std::size_t copied = 0;
  for (std::uint32_t i = 0; i < steps.size(); ++i) {
    const Step& step = steps[i];
    for (const auto& argument : step.arguments) {
      if (!argument.has_tensors) {
        stack.push_back(argument.plain);
      } else if (argument.is_list) {
        c10::impl::GenericList list(argument.plain.toList().elementType());
        for (const auto& source : argument.sources)
          list.push_back(source.kind == Source::Kind::absent ? c10::IValue() : c10::IValue(tensor_of(source)));
        stack.emplace_back(std::move(list));
      } else {
        stack.emplace_back(argument.is_copied ? std::move(copies_[copied++]) : tensor_of(argument.sources.front()));
      }
    }
    std::optional<dispatch::Activation> keeping;
    if (step.is_kept && !frame_.kept())
      keeping.emplace(dispatch::Level::below_autograd, std::make_shared<SaveRegionClient>());
    step.op.callBoxed(stack);
    std::uint32_t next = step.made;
    for (const auto& result : stack)
      for_each_tensor_in(result, [&](const at::Tensor& tensor) { values[next++] = tensor; });
    stack.clear();
    for (auto value : done[i]) values[value].reset();
  }
}

TapeWriter::TapeWriter(std::shared_ptr<CheckpointFrame> frame, const std::unordered_set<const at::TensorImpl*>& fixed)
    : frame_(std::move(frame)), fixed_(fixed) {
  auto tape = std::make_unique<Tape>(*frame_);
  tape_ = tape.get();
  frame_->set_region(std::move(tape));
}

const TapeWriter::Known* TapeWriter::find_in(const KnownTensors& known, const at::Tensor& tensor) {
  auto found = known.find(tensor.unsafeGetTensorImpl());
  if (found == known.end()) return nullptr;
  const Known& as_it_was = found->second;
  return as_it_was.version == version_of(tensor) && as_it_was.grad_fn == node_of(tensor) ? &as_it_was : nullptr;
}

Source TapeWriter::source_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return {};
  if (const auto* made = find_in(made_, tensor)) return {Source::Kind::made, made->index};
  const auto* impl = tensor.unsafeGetTensorImpl();
  if (impl->is_wrapped_number() || fixed_.contains(impl)) return {Source::Kind::fixed, 0, tensor};
  if (const auto* input = find_in(inputs_, tensor)) return {Source::Kind::input, input->index};
  auto index = static_cast<std::uint32_t>(frame_->keep_input(tensor));
  inputs_.insert_or_assign(impl, Known{weak(tensor), index, node_of(tensor), version_of(tensor)});
  if (tensor.has_storage())
    input_storages_.emplace_back(c10::weak_intrusive_ptr<c10::StorageImpl>(tensor.storage().getWeakStorageImpl()),
                                 index);
  return {Source::Kind::input, index};
}

Tape::Argument TapeWriter::argument_of(const c10::IValue& value) {
  Tape::Argument argument;
  if (value.isTensor() && value.toTensor().defined()) {
    argument.has_tensors = true;
    argument.sources.push_back(source_of(value.toTensor()));
    return argument;
  }
  bool any = false;
  if (!value.isTensor()) for_each_tensor_in(value, [&](const at::Tensor&) { any = true; });
  if (!any) {
    argument.plain = value;
    return argument;
  }
  argument.has_tensors = argument.is_list = true;
  for (const c10::IValue& item : value.toListRef())
    argument.sources.push_back(item.isTensor() ? source_of(item.toTensor()) : Source());
  argument.plain = c10::impl::GenericList(value.toList().elementType());
  return argument;
}

bool TapeWriter::changes_others(const dispatch::OperatorCall& call) const {
  bool others = false;
  for_each_written(call, [&](const at::Tensor& tensor) {
    others = others || !find_in(made_, tensor);
    for (const auto& [storage, input] : input_storages_)
      others = others || storage._unsafe_get_target() == storage_of(tensor);
  });
  return others;
}

void TapeWriter::expect_changes(const dispatch::OperatorCall& call) {
  if (!call.op().schema().is_mutable()) return;
  for_each_written(call, [&](const at::Tensor& tensor) {
    for (const auto& [storage, input] : input_storages_)
      if (storage._unsafe_get_target() == storage_of(tensor)) frame_->input(input).detach_from_original();
  });
}

void TapeWriter::forget_inputs_from(std::size_t count) {
  std::erase_if(inputs_, [&](const auto& item) { return item.second.index >= count; });
  std::erase_if(input_storages_, [&](const auto& item) { return item.second >= count; });
  frame_->forget_inputs_from(count);
}

bool TapeWriter::trains(const dispatch::OperatorCall& call) const {
  bool trains = false;
  for (const auto& result : call.results())
    for_each_tensor_in(result, [&](const at::Tensor& tensor) { trains = trains || tensor.requires_grad(); });
  return trains;
}

void TapeWriter::take_results(const dispatch::OperatorCall& call, Tape::Step& step) {
  step.made = tape_->made;
  auto is_given = [&](const at::TensorImpl* impl) {  // a tensor from outside comes back as it is
    for (const auto& argument : step.arguments)
      for (const auto& source : argument.sources) {
        if (source.kind == Source::Kind::fixed && source.fixed.unsafeGetTensorImpl() == impl) return true;
        auto found = inputs_.find(impl);
        if (source.kind == Source::Kind::input && found != inputs_.end() && found->second.index == source.index)
          return true;
      }
    return false;
  };
  for (const auto& result : call.results())
    for_each_tensor_in(result, [&](const at::Tensor& tensor) {
      const std::uint32_t index = step.made + step.count++;
      if (!tensor.defined() || is_given(tensor.unsafeGetTensorImpl())) return;
      made_.insert_or_assign(tensor.unsafeGetTensorImpl(),
                             Known{weak(tensor), index, node_of(tensor), version_of(tensor)});
    });
  tape_->made += step.count;
}

TapeWriter::Outcome TapeWriter::record(dispatch::OperatorCall& call) {
  if (!frame_->surroundings().are_present()) return Outcome::over;
  const auto& schema = call.op().schema();
  if (schema.is_mutable() && changes_others(call)) {
    expect_changes(call);
    return Outcome::over;
  }
  const std::size_t inputs = frame_->input_count(), slots = frame_->slot_count();
  Tape::Step step{.op = call.op(), .is_kept = save_regions > 0};
  for (std::size_t i = 0; i < schema.arguments().size(); ++i) {
    step.arguments.push_back(argument_of(call.arguments()[i]));
    const auto& name = schema.arguments()[i].name();
    auto& argument = step.arguments.back();
    argument.is_copied = (name == "running_mean" || name == "running_var") && argument.has_tensors &&
                         argument.sources.front().kind != Source::Kind::made;
  }
  const auto& kept = frame_->kept() ? frame_->kept() : frame_->kept_of_save_regions();
  const std::size_t calls = kept->call_count();
  auto take_back = [&] {
    kept->forget_calls_from(calls);
    forget_inputs_from(inputs);
  };
  try {
    PresentFrame now({frame_.get(), false});
    call.proceed();
  } catch (...) {
    frame_->forget_slots_from(slots);
    take_back();
    throw;
  }
  if (!trains(call) && frame_->slot_count() == slots) {
    take_back();
    return Outcome::left_out;
  }
  take_results(call, step);
  tape_->steps.push_back(std::move(step));
  return Outcome::recorded;
}

}  // namespace fabric::detail::activation

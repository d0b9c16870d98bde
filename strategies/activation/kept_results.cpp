#include "strategies/activation/kept_results.h"

#include <utility>

#include <fabric/base/error.h>

namespace fabric::detail::activation {
namespace {

bool gives_aliases(const c10::OperatorHandle& op) {
  for (const auto& result : op.schema().returns())
    if (result.alias_info()) return true;
  return op.schema().returns().empty();
}

std::string full_name(const c10::OperatorHandle& op) {
  const auto& overload = op.schema().overload_name();
  return op.schema().name() + (overload.empty() ? "" : "." + overload);
}

bool is_defined(const c10::IValue& value) { return value.isTensor() && value.toTensor().defined(); }

}  // namespace

KeptResults::KeptResults(const CheckpointOptions& options, std::unique_ptr<SavePolicy> policy, Devices devices)
    : policy_(std::move(policy)), report_(options.report), offload_(options.offload), devices_(std::move(devices)) {}

KeptResults::Result KeptResults::keep(const c10::IValue& value) const {
  if (!is_defined(value)) return {value};
  const at::Tensor& tensor = value.toTensor();
  if (offload_ && !tensor.is_cpu()) return {.value = tensor.detach().to(at::kCPU), .from = tensor.device()};
  // Below autograd an alias has a count of versions of its own.
  Result result{tensor.detach()};
  if (!tensor.is_inference()) {
    result.versions = tensor.unsafeGetTensorImpl()->version_counter();
    result.version = result.versions.current_version();
  }
  return result;
}

void KeptResults::count(const std::string& name, const Entry& entry, std::int64_t by) const {
  if (!report_) return;
  auto& count = report_->operators[name];
  (entry.saved ? count.saved : count.recomputed) += by;
  (entry.saved ? count.saved_bytes : count.recomputed_bytes) += by * entry.bytes;
}

void KeptResults::forget_calls_from(std::size_t count) {
  while (calls_.size() > count) {
    auto& entries = entries_[calls_.back()];
    this->count(calls_.back(), entries.back(), -1);
    if (report_ && report_->operators[calls_.back()].saved + report_->operators[calls_.back()].recomputed == 0)
      report_->operators.erase(calls_.back());
    entries.pop_back();
    calls_.pop_back();
  }
}

// An operator of the region is about to write into what was kept: a bias that is added in place, say.
void KeptResults::keep_from_changes(const dispatch::OperatorCall& call) {
  const auto& arguments = call.op().schema().arguments();
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const auto& written = call.arguments()[i];
    const auto* alias = arguments[i].alias_info();
    if (!alias || !alias->isWrite() || !is_defined(written) || !written.toTensor().has_storage()) continue;
    for (auto& [name, entries] : entries_)
      for (auto& entry : entries)
        for (auto& result : entry.results)
          if (is_defined(result.value) && result.value.toTensor().has_storage() &&
              result.value.toTensor().storage().is_alias_of(written.toTensor().storage()))
            result = {result.value.toTensor().clone()};
  }
}

void KeptResults::first_run(dispatch::OperatorCall& call) {
  if (holds_any_ && call.op().schema().is_mutable()) keep_from_changes(call);
  std::vector<c10::IValue> inputs;
  if (policy_) inputs = call.arguments().vec();
  call.proceed();
  Entry entry;
  if (!gives_aliases(call.op())) {
    // A policy counts what it is asked, so it is asked in any case.
    const bool wanted = policy_ && policy_->save(call.op(), inputs, call.results());
    entry.saved = wanted || save_regions > 0;
  }
  if (entry.saved) {
    holds_any_ = true;
    for (const auto& result : call.results()) entry.results.push_back(keep(result));
    if (call.op().hasTag(at::Tag::nondeterministic_seeded)) entry.random.emplace(devices_);
  }
  auto name = full_name(call.op());
  for (const auto& result : call.results())
    if (is_defined(result)) entry.bytes += static_cast<std::int64_t>(result.toTensor().nbytes());
  count(name, entry, 1);
  calls_.push_back(name);
  entries_[name].push_back(std::move(entry));
}

void KeptResults::second_run(dispatch::OperatorCall& call) {
  auto name = full_name(call.op());
  auto& entries = entries_[name];
  std::size_t index = next_[name]++;
  if (index >= entries.size())
    throw MisuseError("checkpoint: when its region ran again, it called " + name + " more often than the first time (" +
                      std::to_string(entries.size()) + "). The function must do the same both times");
  Entry& entry = entries[index];
  if (!entry.saved) return call.proceed();
  if (std::exchange(entry.used, true))
    throw MisuseError("checkpoint: a second backward pass needs what was kept of " + name +
                      ", which is let go after the first. Leave the policy out for regions that are gone through "
                      "several times");
  std::vector<c10::IValue> results;
  for (auto& result : entry.results) {
    if (result.versions.enabled() && result.versions.current_version() != result.version)
      throw MisuseError("checkpoint: what was kept of " + name +
                        " was changed in place since. Let the policy recompute it, or do not change it");
    results.push_back(result.from ? c10::IValue(result.value.toTensor().to(*result.from)) : std::move(result.value));
  }
  entry.results.clear();
  if (entry.random) entry.random->put();
  call.answer(std::move(results));
}

void KeptResultsClient::operator_called(dispatch::OperatorCall& call) {
  if (call.op().schema().name() == "aten::detach") return call.proceed();
  again ? kept->second_run(call) : kept->first_run(call);
}

}  // namespace fabric::detail::activation

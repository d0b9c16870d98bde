#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/ivalue.h>
#include <c10/core/TensorImpl.h>

#include <fabric/strategies/activation.h>

#include "strategies/activation/surroundings.h"

namespace fabric::detail::activation {

/// Results are kept whatever the policy says, on this thread, while it is above zero (fabric::save_region).
inline thread_local int save_regions = 0;

/// What a region kept of its first run, by operator, in the order of the calls.
class KeptResults {
 public:
  /// Without a policy only what save_region tells.
  KeptResults(const CheckpointOptions& options, std::unique_ptr<SavePolicy> policy, Devices devices);

  void first_run(dispatch::OperatorCall& call);
  void begin_second_run() { next_.clear(); }
  void second_run(dispatch::OperatorCall& call);
  bool holds_any() const { return holds_any_; }
  /// The calls of the first run so far; those after are taken back where they do not belong to the region after all.
  std::size_t call_count() const { return calls_.size(); }
  void forget_calls_from(std::size_t count);

 private:
  struct Result {
    c10::IValue value;
    c10::VariableVersion versions = {};  // of the tensor that the model has
    std::uint32_t version = 0;
    std::optional<c10::Device> from = {};  // where it was, when it was moved to the host
  };
  struct Entry {
    bool saved = false;
    bool used = false;
    std::int64_t bytes = 0;
    std::vector<Result> results;
    /// After an operator that draws random numbers: those that follow draw the same ones, though it is not run again.
    std::optional<RandomState> random;
  };
  Result keep(const c10::IValue& value) const;
  void keep_from_changes(const dispatch::OperatorCall& call);
  void count(const std::string& name, const Entry& entry, std::int64_t by) const;

  std::unique_ptr<SavePolicy> policy_;
  std::shared_ptr<CheckpointReport> report_;
  bool offload_;
  Devices devices_;
  std::map<std::string, std::vector<Entry>> entries_;
  std::map<std::string, std::size_t> next_;
  std::vector<std::string> calls_;
  bool holds_any_ = false;
};

/// Shows the operators of one run to what is kept.
struct KeptResultsClient : dispatch::Client {
  KeptResultsClient(std::shared_ptr<KeptResults> kept, bool again) : kept(std::move(kept)), again(again) {}
  void operator_called(dispatch::OperatorCall& call) override;
  std::shared_ptr<KeptResults> kept;
  bool again;
};

}  // namespace fabric::detail::activation

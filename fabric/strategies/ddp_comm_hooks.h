#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <c10/util/intrusive_ptr.h>

#include <fabric/config.h>
#include <fabric/plugins/collectives/process_group.h>

namespace c10d {
class GradBucket;
}
namespace c10::ivalue {
struct Future;
}

namespace fabric {

/// How ddp reduces one bucket of gradients: a flat tensor that holds the gradients of several parameters. Every rank
/// gets the same buckets in the same order, so that a hook may call any collective. State lives in the hook's members;
/// one object serves all buckets of one module.
class FABRIC_API CommHook {
 public:
  using Future = c10::intrusive_ptr<c10::ivalue::Future>;
  virtual ~CommHook() = default;
  /// Starts the reduction and returns a future of a tensor (or a list of one) with the bucket's size and type: the mean
  /// over the ranks, unless the hook means something else. Collectives must be issued before it returns, not in the
  /// future's callbacks: callbacks run in no fixed order. Include <torch/csrc/distributed/c10d/comm.hpp>.
  virtual Future run(c10d::GradBucket& bucket) = 0;
  /// What a resumed run needs (error feedback, counters); per rank.
  virtual Value state_dict() const { return Value::Map{}; }
  virtual void load_state_dict(const Value&) {}
};

/// Makes a hook for one module from the settings given beside its name; unknown settings are a ConfigError.
using CommHookFactory = std::function<std::shared_ptr<CommHook>(const ProcessGroup& group, const Tree& params)>;

/// Adds a hook under a name for `DDPStrategy::Config::comm_hook`. Throws ConfigError when the name is taken, unless
/// `override_existing`.
FABRIC_API void register_comm_hook(const std::string& name, CommHookFactory factory, bool override_existing = false,
                                   std::string description = "");
/// Built in: "allreduce", "fp16_compress", "bf16_compress", "powersgd".
FABRIC_API std::vector<std::string> available_comm_hooks();
/// `wrapper` is "", "fp16" or "bf16": the bucket is cast to that type before the hook sees it, and back afterwards.
FABRIC_API std::shared_ptr<CommHook> make_comm_hook(const Choice& choice, const std::string& wrapper,
                                                    const ProcessGroup& group);

/// Settings of "powersgd": each gradient matrix is sent as the product of two thin ones, and what is lost by that is
/// added to the next step's gradient.
struct PowerSGDConfig {
  /// Columns of the thin matrices: higher is more exact and sends more.
  std::int64_t matrix_approximation_rank = 1;
  /// Plain averaging for that many steps first, while gradients still change quickly. At least 2 with error feedback or
  /// warm start, since buckets change after the first step.
  std::int64_t start_powersgd_iter = 1000;
  /// Matrices that would not shrink by this factor are averaged whole.
  double min_compression_rate = 2;
  bool use_error_feedback = true;
  /// Starts each step's power iteration from the last one's result.
  bool warm_start = true;
  /// Added to norms in the orthogonalisation; guards against matrices of zeros.
  double orthogonalization_epsilon = 0;
  std::int64_t random_seed = 0;
  FABRIC_FIELDS(PowerSGDConfig, matrix_approximation_rank, start_powersgd_iter, min_compression_rate,
                use_error_feedback, warm_start, orthogonalization_epsilon, random_seed)
};

}  // namespace fabric

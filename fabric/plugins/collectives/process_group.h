#pragma once

#include <chrono>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/TensorOptions.h>
#include <c10/util/intrusive_ptr.h>

#include <fabric/base/env_reader.h>
#include <fabric/base/rank_info.h>
#include <fabric/base/value.h>
#include <fabric/config.h>

namespace c10d {
class ProcessGroup;
class Store;
class Work;
}  // namespace c10d

namespace fabric {

namespace collectives {
class Group;
}

/// `mean` divides the sum by the group's size; on integer tensors it truncates.
enum class ReduceOp { mean, sum, min, max, product };
/// "mean" or "avg", "sum", "min", "max", "product" or "prod"; throws ConfigError naming the nearest for anything else.
FABRIC_API ReduceOp parse_reduce_op(const std::string& name);

/// A group of ranks that talk to each other. A handle: copies share the group. Every operation is collective: all ranks
/// of the group call it, in the same order. Operations wait until the result may be used by the calling thread (on
/// CUDA: the current stream waits). Not thread-safe. Throws TimeoutError, MismatchError or CollectiveError; MisuseError
/// for an empty handle, on ranks outside the group, after shutdown() and for arguments that cannot be right on any
/// rank.
class FABRIC_API ProcessGroup {
 public:
  struct Config {
    /// "auto" (nccl on CUDA, single for one rank, shm within a machine, mpi under mpirun, gloo otherwise), or one of
    /// these by its name, or what register_backend (backend.h) added.
    std::string backend = "auto";
    double timeout_seconds = 1800;
    /// Compares operation, shape and type across the ranks before each collective that Fabric makes. Costs one small
    /// all-reduce. Off: over Gloo ranks that wait for one another in different operations, or with different amounts,
    /// find out within seconds, by a MismatchError after which the group has to be made anew; over MPI on one machine
    /// at once. Elsewhere a mismatch ends in the backend's own error or in the timeout. A broadcast or all_gather that
    /// brings less than is waited for may pass unseen.
    bool check = true;
    /// Over MPI: all-reduces of at least this many MiB that nobody waits for (DDP's buckets) run in a thread beside
    /// backward. Pays where each rank has a core to spare; 0: never.
    double mpi_overlap_mb = 0;
    FABRIC_FIELDS(Config, backend, timeout_seconds, check, mpi_overlap_mb)
  };

  /// An empty handle; operator bool is false.
  ProcessGroup() = default;
  /// Joins the job's group of all ranks; waits for all of them, at most the timeout.
  static ProcessGroup create(const Config& config, const RankInfo& ranks, c10::Device device,
                             std::shared_ptr<EnvReader> env = process_env());
  /// A group over a communicator that the caller owns and that must outlive it (`MPI_Comm*`, so that mpi.h is not
  /// needed here). Never initialises or finalises MPI.
  static ProcessGroup from_mpi_comm(const Config& config, const void* mpi_comm);
  /// Wraps a group that the caller made with LibTorch.
  static ProcessGroup wrap(c10::intrusive_ptr<c10d::ProcessGroup> group, const Config& config);
  /// A group of one, whose operations return their input.
  static ProcessGroup single();

  /// Whether both are handles of one group.
  bool operator==(const ProcessGroup&) const = default;
  /// Whether this rank is in a group.
  explicit operator bool() const;
  /// Whether this handle is anything but empty. A rank outside a subgroup holds one that is set and yet false.
  bool is_set() const { return impl_ != nullptr; }
  /// Throws MisuseError on a rank outside the group.
  int rank() const;
  int size() const;
  const Config& config() const;
  /// The backend in use, by its registered name: "shm", "gloo", "mpi", "nccl", "single", …
  const std::string& backend() const;
  /// One line about what carries which tensors, for logs.
  std::string describe() const;
  /// LibTorch's own object, for the Reducer and for the user's own operations.
  const c10::intrusive_ptr<c10d::ProcessGroup>& c10d() const;

  /// Memory for tensors that this group moves often: where the backend knows a better place than ordinary memory
  /// (shared with the other ranks, say), the tensor lies there. Uninitialised; freed like any tensor, and may outlive
  /// the group.
  at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options = {}) const;

  // --- tensors. The in-place forms end in an underscore. Tensors must be dense; non-contiguous ones are copied.
  void all_reduce_(at::Tensor& tensor, ReduceOp op) const;
  at::Tensor all_reduce(const at::Tensor& tensor, ReduceOp op) const;
  /// The result on rank `dst`; the other ranks get an undefined tensor.
  at::Tensor reduce(const at::Tensor& tensor, ReduceOp op, int dst) const;
  void broadcast_(at::Tensor& tensor, int src) const;
  /// One tensor per rank, by rank. Shapes may differ between the ranks when `uneven` (costs one exchange of shapes);
  /// the number of dimensions and the type may not.
  std::vector<at::Tensor> all_gather(const at::Tensor& tensor, bool uneven = false) const;
  std::vector<at::Tensor> gather(const at::Tensor& tensor, int dst) const;
  /// `inputs` (one per rank) counts on rank `src` only; `like` gives the shape and type of what each rank receives.
  at::Tensor scatter(const std::vector<at::Tensor>& inputs, const at::Tensor& like, int src) const;
  at::Tensor reduce_scatter(const std::vector<at::Tensor>& inputs, ReduceOp op) const;
  std::vector<at::Tensor> all_to_all(const std::vector<at::Tensor>& inputs) const;
  void send(const at::Tensor& tensor, int dst, int tag = 0) const;
  void recv_(at::Tensor& tensor, int src, int tag = 0) const;
  void barrier(const std::string& name = "") const;

  // --- nested values; tensors may differ in shape between the ranks.
  Value broadcast_value(const Value& value, int src) const;
  std::vector<Value> all_gather_value(const Value& value) const;
  /// True when every rank (all) or at least one (any) says so.
  bool all(bool decision) const;
  bool any(bool decision) const;

  /// A group of some of the ranks, called by every rank of this group. Ranks outside get a handle that is false, knows
  /// the group's size and throws MisuseError from every operation.
  ProcessGroup subgroup(const std::vector<int>& ranks, const std::string& name = "") const;
  /// The same ranks over connections of their own, where the backend has such (Gloo): what travels there cannot meet
  /// this group's operations. Elsewhere this group itself. Every rank calls it.
  ProcessGroup apart(const std::string& name) const;
  /// Whether nothing has broken the group.
  bool is_usable() const;
  /// Waits for work that was started on `c10d()`, and throws what the group's own operations throw. `operation` is a
  /// literal.
  void wait_for(const char* operation, const c10::intrusive_ptr<c10d::Work>& work) const;
  /// Where the group's check is on: throws MismatchError on every rank unless all have the same text. For an operation
  /// that is made of several, before its first.
  void require_same(const char* operation, const std::string& what) const;
  /// For work started on `c10d()` that threw `error`: marks the group as failed and throws what its own operations
  /// throw, TimeoutError or CollectiveError.
  [[noreturn]] void report_failure(const char* operation, const std::exception& error,
                                   std::chrono::steady_clock::time_point begin) const;
  /// Frees the group; never waits for a peer. Safe to call twice.
  void shutdown();

 private:
  explicit ProcessGroup(std::shared_ptr<collectives::Group> impl);
  collectives::Group& held(const char* operation) const;
  collectives::Group& use(const char* operation) const;
  std::shared_ptr<collectives::Group> impl_;
};

}  // namespace fabric

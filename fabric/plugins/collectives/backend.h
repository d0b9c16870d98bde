#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <fabric/base/env_reader.h>
#include <fabric/plugins/collectives/process_group.h>

// For those who bring a process-group backend of their own; programs that use the built-in ones need nothing of this.
namespace fabric {

/// What a backend is made from.
struct BackendRequest {
  /// Keys that belong to this group alone, where its ranks have met already; null for kinds that meet by themselves.
  c10::intrusive_ptr<c10d::Store> store;
  int rank = 0;
  int size = 1;
  std::chrono::milliseconds timeout{};
  /// This rank's own device. A kind that carries CPU tensors gets it, too.
  c10::Device device = c10::kCPU;
  /// Different for each group of a process.
  std::string name;
  /// The place of this rank in the whole job, also where the group is of some of its ranks.
  RankInfo ranks;
  ProcessGroup::Config config;
  std::shared_ptr<EnvReader> env = process_env();
};

/// How the ranks of one group move the tensors of one kind of device. LibTorch's c10d::Backend does the work; this
/// class adds what a group has to know beside it. The defaults suit a plain c10d::Backend, so that it can be handed
/// over as it is: `std::make_shared<CollectiveBackend>(c10::make_intrusive<Mine>(…))`.
class FABRIC_API CollectiveBackend {
 public:
  /// Of a backend that carries CPU tensors `allreduce` (at least of int64, by MAX), `broadcast`, `_allgather_base` and
  /// `barrier` are needed by every group, and `gather`, `scatter`, `reduce`, `_reduce_scatter_base`, `alltoall_base`,
  /// `send` and `recv` for the operations of ProcessGroup with these names. What is missing is LibTorch's error when it
  /// is called.
  explicit CollectiveBackend(c10::intrusive_ptr<c10d::Backend> backend);
  virtual ~CollectiveBackend();
  CollectiveBackend(const CollectiveBackend&) = delete;
  CollectiveBackend& operator=(const CollectiveBackend&) = delete;

  virtual const c10::intrusive_ptr<c10d::Backend>& c10d() const { return backend_; }
  /// One line for logs: "shared memory within 2 hosts, gloo between them".
  virtual std::string describe() const;

  // --- what it can do
  /// Whether it reduces tensors of this type by this operation (for `mean`: adds them). A group converts others to a
  /// wider type that it does reduce, and complex numbers to pairs of real ones. By default what LibTorch's Gloo knows:
  /// signed and unsigned 8-bit integers, int32, int64 and all floats of 16 bits and more.
  virtual bool reduces(at::ScalarType type, ReduceOp op) const;
  /// Whether it knows the mean of this type (c10d's AVG); a group divides the sum otherwise.
  virtual bool divides(at::ScalarType) const { return false; }

  // --- what it does
  /// Whether all ranks gave the same mark; waits for all of them, and throws as its operations do. Called before each
  /// checked operation, so its cost counts. By default one all-reduce of two int64.
  /// After false, the group gathers a line of text from every rank by `_allgather_base`.
  virtual bool agree(std::int64_t mark, const char* operation);
  /// Memory from which this backend moves tensors best (shared with the peers, registered with a network card),
  /// uninitialised and freed like any tensor. By default ordinary memory.
  virtual at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options);
  /// A backend for some of this one's ranks, ascending; called on these ranks only, which give the same list and
  /// number. Null, the default: one is made anew by the maker, over a part of the store that is the new group's own.
  virtual std::shared_ptr<CollectiveBackend> subgroup(const BackendRequest& request, const std::vector<int>& ranks,
                                                      int number);

  // --- its end
  /// Called after a failure: makes operations fail in which other ranks may still wait for this one.
  virtual void break_connections() {}
  /// Gives up without waiting for any peer or for operations in flight; nothing else is called afterwards. By default
  /// c10d's abort.
  virtual void close();

 private:
  c10::intrusive_ptr<c10d::Backend> backend_;
  at::Tensor marks_;                 // what agree reduces
  std::vector<at::Tensor> reduced_;  // its argument, kept so that a call allocates nothing
};

/// The work of an operation that is done when it is returned: for backends that run in the calling thread.
FABRIC_API c10::intrusive_ptr<c10d::Work> finished_work(std::vector<at::Tensor> outputs, int rank = -1,
                                                        c10d::OpType type = c10d::OpType::UNKNOWN);

/// One kind of backend, as it is registered under a name.
struct BackendKind {
  using Make = std::function<std::shared_ptr<CollectiveBackend>(const BackendRequest&)>;
  /// Connects to the other ranks, within the request's timeout. Called by all ranks of a group at once.
  Make make;
  /// Whose tensors it carries.
  c10::DeviceType device = c10::kCPU;
  /// Of a kind for another device: which kind carries CPU tensors, values and checks beside it.
  std::string beside = "gloo";
  /// Whether the ranks meet in the job's store first. False: it finds its peers without one.
  bool needs_store = true;
  /// How well it suits these ranks where the settings say "auto": the kind with the highest number is taken. Empty, or
  /// 0: only when asked for by name. Built in are gloo (10), mpi (20, under mpirun), shm (25, CPU ranks of one
  /// machine), nccl (30, on CUDA devices) and single (40, one rank on the CPU).
  std::function<int(const RankInfo& ranks, c10::Device device)> suits = {};
  /// Throws UnavailableError or ConfigError where it cannot work, before anything waits for other ranks.
  std::function<void(const BackendRequest&)> require = {};
  /// Whether `make` ends in UnavailableError on every rank where the system does not let one of them take part: "auto"
  /// then takes what suits next, and says so.
  bool may_be_refused = false;
};

/// Adds a kind of backend for `ProcessGroup::Config::backend`, before the first group is made. Names are
/// case-insensitive. Throws ConfigError for a name that is taken, unless `override_existing`.
FABRIC_API void register_backend(const std::string& name, BackendKind kind, bool override_existing = false,
                                 std::string description = "");
/// In the order of registration.
FABRIC_API std::vector<std::string> available_backends();
/// Makes a registered backend as a part of another one: what connects the hosts of a hierarchical group, say. The ranks
/// in question call it with a store of their own. Throws ConfigError naming the nearest for an unknown name.
FABRIC_API std::shared_ptr<CollectiveBackend> make_backend(const std::string& name, const BackendRequest& request);

}  // namespace fabric

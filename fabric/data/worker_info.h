#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include <ATen/core/Generator.h>

#include <fabric/export.h>

namespace fabric {

/// Where and for what a dataset's `get` runs. Ask `fabric::worker_info()` inside it.
class FABRIC_API WorkerInfo {
 public:
  /// 0 … num_workers - 1; 0 in the calling thread.
  int id = 0;
  /// 0 when samples are read in the thread that iterates.
  int num_workers = 0;
  int rank = 0;
  /// This worker's own seed, unique over workers and ranks: worker_seed(loader's seed + epoch, id, rank).
  std::uint64_t seed = 0;
  /// Number of the batch within the epoch.
  std::size_t batch = 0;

  /// For random augmentation: a generator seeded anew for each batch, from the loader's seed, epoch, batch and rank.
  /// The numbers do not depend on how many workers there are, and they are the same after a resume. LibTorch's default
  /// generator is shared by all threads: numbers drawn from it in a worker come in no fixed order. Outside a loader
  /// this is that default generator.
  at::Generator& generator();

 private:
  friend class WorkerScope;
  std::uint64_t batch_seed_ = 0;
  bool seeded_ = false;
  bool in_loader_ = false;
  at::Generator generator_;
};

/// The worker that runs in this thread.
FABRIC_API WorkerInfo& worker_info();

/// What the seeds of an epoch's workers and batches derive from.
struct SeedBase {
  std::uint64_t base = 0;
  int rank = 0;
};

/// Says which worker and batch this thread works for, until the scope closes.
class FABRIC_API WorkerScope {
 public:
  WorkerScope(const SeedBase& seeds, int id, int num_workers, std::size_t batch);
  ~WorkerScope();
  WorkerScope(const WorkerScope&) = delete;
  WorkerScope& operator=(const WorkerScope&) = delete;

 private:
  WorkerInfo* previous_;
  std::optional<WorkerInfo> nested_;
};

}  // namespace fabric

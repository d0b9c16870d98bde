#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <typeinfo>
#include <utility>
#include <vector>

#include <fabric/data/loader_core.h>
#include <fabric/data/source.h>
#include <fabric/data/worker_pool.h>
#include <fabric/tensors.h>

namespace fabric::detail {

/// A loader with its dataset; the handles share it.
template <class Batch>
class TypedCore final : public LoaderCore {
 public:
  TypedCore(DataLoaderOptions options, bool is_stream, std::optional<std::size_t> size,
            std::shared_ptr<BatchSource<Batch>> source)
      : LoaderCore(std::move(options), is_stream, size), source_(std::move(source)) {}

  BatchSource<Batch>& source() { return *source_; }
  /// The dataset may be changed through it, so that workers get new copies afterwards.
  void* dataset() {
    for_workers_.clear();
    return source_->dataset();
  }
  /// One per worker thread; a stream has one reader.
  const std::vector<std::shared_ptr<BatchSource<Batch>>>& for_workers() {
    if (is_stream() && for_workers_.empty()) for_workers_.push_back(source_);
    while (!is_stream() && for_workers_.size() < static_cast<std::size_t>(options().workers))
      for_workers_.push_back(source_->for_worker());
    return for_workers_;
  }
  void forget_workers() { for_workers_.clear(); }

 private:
  std::shared_ptr<BatchSource<Batch>> source_;
  std::vector<std::shared_ptr<BatchSource<Batch>>> for_workers_;
};

/// One pass over a loader, from its first use to its end.
template <class Batch>
class Iteration {
 public:
  explicit Iteration(std::shared_ptr<TypedCore<Batch>> core) : core_(std::move(core)) {}
  ~Iteration() {
    pool_.reset();
    if (id_) core_->end(*id_, false);
  }
  Iteration(const Iteration&) = delete;
  Iteration& operator=(const Iteration&) = delete;

  /// True after the last batch; asks for the first one if that was not done yet.
  bool ended() {
    if (!id_) advance();
    return done_;
  }
  Batch& current() {
    if (ended() || !current_) throw MisuseError("there is no batch here: the loader ended, or this batch failed");
    return *current_;
  }
  void step() {
    if (!ended()) advance();
  }

 private:
  using Slots = std::vector<std::optional<Batch>>;

  void advance() {
    if (!id_) start();
    core_->check_current(*id_);
    current_.reset();
    if (pool_ ? !take_from_worker() : !make_here()) return finish();
    if (core_->moves()) move_to_device();
  }

  void start() {
    id_ = core_->begin();
    next_batch_ = core_->first_batch();
    if (core_->is_stream()) core_->source().reset();
    if (core_->options().workers > 0)
      start_workers();
    else if (core_->is_stream())
      read_past(core_->source(), core_->options(), next_batch_);
  }

  static void read_past(BatchSource<Batch>& source, const DataLoaderOptions& options, std::size_t batches) {
    FetchTrace trace;
    for (std::size_t i = 0; i < batches && source.next(options.batch_size, options.drop_last, trace); ++i) continue;
  }

  void finish() {
    done_ = true;
    pool_.reset();
    core_->end(*id_, true);
  }

  /// Makes batch `number` in whatever thread calls; nothing at the end of a stream.
  static std::optional<Batch> make(BatchSource<Batch>& source, const LoaderCore& core, int worker, std::size_t number,
                                   Indices indices, const std::atomic<bool>* stop, const SeedBase& seeds) {
    const auto& options = core.options();
    WorkerScope scope(seeds, std::max(worker, 0), worker < 0 ? 0 : options.workers, number);
    FetchTrace trace{.stop = stop};
    try {
      if (core.is_stream()) return source.next(options.batch_size, options.drop_last, trace);
      return source.fetch(indices, trace);
    } catch (const Stopped&) {
      throw;
    } catch (...) {
      throw_data_error(number, worker, trace.index, indices, std::current_exception());
    }
  }

  bool make_here() {
    Indices indices;
    do {
      if (!core_->is_stream() && !core_->next_indices(buffer_, indices)) return false;
      number_ = next_batch_++;
    } while (core_->is_consumed(number_));
    // Counted first: a batch that cannot be made is passed over when the caller goes on.
    core_->consumed(number_);
    current_ = make(core_->source(), *core_, -1, number_, indices, nullptr, core_->seeds());
    return current_.has_value();
  }

  void start_workers() {
    const auto& options = core_->options();
    const auto& sources = core_->for_workers();
    threads_ = sources.size();
    std::size_t room = static_cast<std::size_t>(options.workers) * static_cast<std::size_t>(options.prefetch);
    made_ = std::make_shared<Slots>(room);
    // The pool's threads may outlive this object, so they hold all they use.
    auto work = [core = core_, sources, made = made_, seeds = core_->seeds(), first = next_batch_](
                    int worker, const WorkerPool::Job& job, const std::atomic<bool>& stop) {
      auto& source = *sources[static_cast<std::size_t>(worker)];
      if (core->is_stream() && job.batch == first) read_past(source, core->options(), first);
      auto batch = make(source, *core, worker, job.batch, job.indices, &stop, seeds);
      if (batch && core->pins()) for_each_tensor(*batch, [](at::Tensor& tensor) { tensor = pin(tensor); });
      (*made)[job.slot] = std::move(batch);
    };
    pool_ = std::make_unique<WorkerPool>(static_cast<int>(threads_), room, std::move(work));
    next_taken_ = next_batch_;
    hand_out();
  }

  /// Gives the workers all the work there is room for.
  void hand_out() {
    while (!all_handed_out_ && pool_->has_room(next_batch_)) {
      Indices indices;
      if (!core_->is_stream() && !core_->next_indices(pool_->index_buffer(next_batch_), indices)) {
        all_handed_out_ = true;
      } else {
        std::size_t number = next_batch_++;
        if (core_->is_consumed(number)) continue;
        pool_->submit(number, indices);
        ++outstanding_;
      }
    }
  }

  bool take_from_worker() {
    if (outstanding_ == 0) return false;
    const auto& options = core_->options();
    while (core_->is_consumed(next_taken_)) ++next_taken_;
    bool in_order = options.in_order || core_->is_stream();
    auto job = pool_->wait(in_order ? std::optional(next_taken_) : std::nullopt,
                           std::chrono::duration<double>(options.timeout));
    if (!job) {
      core_->forget_workers();
      int worker = in_order ? static_cast<int>(next_taken_ % threads_) : -1;
      throw_worker_timeout(next_taken_, worker, core_->seeds().rank, options.timeout);
    }
    current_ = std::move((*made_)[job->slot]);
    (*made_)[job->slot].reset();
    auto error = pool_->error(job->slot);
    number_ = job->batch;
    --outstanding_;
    pool_->release(job->slot);
    bool ended = !error && !current_;
    if (!ended) {
      core_->consumed(number_);
      hand_out();
    }
    if (error) std::rethrow_exception(error);
    return !ended;
  }

  void move_to_device() {
    bool seen_all = for_each_tensor(*current_, [this](at::Tensor& tensor) { core_->place(tensor); });
    if (!seen_all && !core_->device()->is_cpu()) core_->warn_opaque(typeid(Batch).name());
  }

  std::shared_ptr<TypedCore<Batch>> core_;
  std::optional<std::uint64_t> id_;
  bool done_ = false;
  std::optional<Batch> current_;
  std::size_t number_ = 0;
  std::size_t next_batch_ = 0;
  std::vector<std::size_t> buffer_;
  std::shared_ptr<Slots> made_;
  std::unique_ptr<WorkerPool> pool_;
  std::size_t threads_ = 0;
  std::size_t next_taken_ = 0;
  std::size_t outstanding_ = 0;
  bool all_handed_out_ = false;
};

}  // namespace fabric::detail

#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <typeinfo>
#include <utility>
#include <vector>

#include <fabric/data/loader_core.h>
#include <fabric/data/source.h>
#include <fabric/data/worker_pool.h>
#include <fabric/state/tensors.h>

namespace fabric::detail {

template <class Batch>
class Iteration;

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
  /// A thread was left to itself: it may use the copies that it was given for as long as it runs.
  void leave_behind(std::weak_ptr<const void> threads) {
    for_workers_.clear();
    left_behind_ = std::move(threads);
  }
  /// A stream cannot be copied; two threads that read it would each get a part.
  void require_alone() const {
    if (is_stream() && !left_behind_.expired())
      throw MisuseError(
          "a worker thread of an earlier loop still waits inside this stream, which cannot be read beside it. Find out "
          "what the stream waits for, or make a new loader with a new stream");
  }
  /// Ends the threads of the iteration before: they share the dataset, or its copies, with those of `now`.
  void take_over(Iteration<Batch>* now) {
    auto* before = std::exchange(active_, now);
    if (before && before != now) before->stop_workers();
  }
  void forget(Iteration<Batch>* gone) {
    if (active_ == gone) active_ = nullptr;
  }

 private:
  std::shared_ptr<BatchSource<Batch>> source_;
  std::vector<std::shared_ptr<BatchSource<Batch>>> for_workers_;
  std::weak_ptr<const void> left_behind_;
  Iteration<Batch>* active_ = nullptr;
};

/// One pass over a loader, from its first use to its end.
template <class Batch>
class Iteration {
 public:
  explicit Iteration(std::shared_ptr<TypedCore<Batch>> core) : core_(std::move(core)) {}
  ~Iteration() {
    stop_workers();
    core_->forget(this);
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
  void stop_workers() {
    if (pool_ && !pool_->stop()) core_->leave_behind(pool_->life());
    pool_.reset();
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
    core_->take_over(this);
    auto id = core_->begin();
    try {
      core_->require_alone();
      next_batch_ = core_->first_batch();
      if (core_->is_stream()) rewind_stream();
      if (core_->options().workers > 0) start_workers();
    } catch (...) {
      stop_workers();
      core_->begin_failed();
      throw;
    }
    id_ = id;
  }

  /// Starts the stream and reads past what was used. Never in a worker: going on after an error in between would give
  /// other samples than those that are left.
  void rewind_stream() {
    core_->source().reset();
    int worker = core_->options().workers > 0 ? 0 : -1;
    for (std::size_t i = 0; i < next_batch_; ++i)
      if (!make(core_->source(), *core_, worker, i, {}, nullptr, core_->seeds()))
        throw MisuseError("the stream ended after " + std::to_string(i) + " batches, but " +
                          std::to_string(next_batch_) +
                          " were used before the state was saved: a stream has to give the same samples again");
  }

  void finish() {
    done_ = true;
    stop_workers();
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

  /// Whether it is moved by us or by the caller: the copy then need not hold up the host.
  static void pin_tensors(const LoaderCore& core, std::optional<Batch>& batch) {
    if (batch && core.pins()) for_each_tensor(*batch, [](at::Tensor& tensor) { tensor = pin(tensor); });
  }

  bool make_here() {
    Indices indices;
    do {
      if (!core_->is_stream() && !core_->next_indices(buffer_, indices)) return false;
      number_ = next_batch_++;
    } while (core_->is_consumed(number_));
    // Counted first: a batch that cannot be made is passed over when the caller goes on.
    core_->consumed(number_, indices);
    auto batch = make(core_->source(), *core_, -1, number_, indices, nullptr, core_->seeds());
    pin_tensors(*core_, batch);
    current_ = std::move(batch);
    return current_.has_value();
  }

  /// How long leaving a loop waits for a sample that is being read.
  std::chrono::duration<double> patience() const {
    constexpr double kMost = 60;
    double timeout = core_->options().timeout;
    return std::chrono::duration<double>(timeout > 0 ? std::min(timeout, kMost) : kMost);
  }

  void start_workers() {
    const auto& options = core_->options();
    const auto& sources = core_->for_workers();
    threads_ = sources.size();
    std::size_t room = static_cast<std::size_t>(options.workers) * static_cast<std::size_t>(options.prefetch);
    made_ = std::make_shared<Slots>(room);
    outstanding_ = 0;
    all_handed_out_ = false;
    sampler_error_ = nullptr;
    // The pool's threads may outlive this object, so they hold all they use.
    auto work = [core = core_, sources, made = made_, seeds = core_->seeds(), dtypes = std::make_shared<DtypeWatch>()](
                    int worker, const WorkerPool::Job& job, const std::atomic<bool>& stop) {
      auto before = DtypeWatch::default_dtype();
      auto& source = *sources[static_cast<std::size_t>(worker)];
      auto batch = make(source, *core, worker, job.batch, job.indices, &stop, seeds);
      if (batch) dtypes->look(before, *batch);
      pin_tensors(*core, batch);
      (*made)[job.slot] = std::move(batch);
    };
    pool_ = std::make_unique<WorkerPool>(static_cast<int>(threads_), room, patience(), std::move(work));
    next_taken_ = next_batch_;
    hand_out();
  }

  /// Gives the workers all the work there is room for.
  void hand_out() {
    try {
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
    } catch (...) {
      // The sampler failed for a later batch than the one that is being taken: it is told when that one's turn comes.
      sampler_error_ = std::current_exception();
      all_handed_out_ = true;
    }
  }

  bool take_from_worker() {
    if (outstanding_ == 0) hand_out();
    if (outstanding_ == 0) {
      if (!sampler_error_) return false;
      all_handed_out_ = false;
      std::rethrow_exception(std::exchange(sampler_error_, nullptr));
    }
    const auto& options = core_->options();
    while (core_->is_consumed(next_taken_)) ++next_taken_;
    bool in_order = options.in_order || core_->is_stream();
    auto job = pool_->wait(in_order ? std::optional(next_taken_) : std::nullopt,
                           std::chrono::duration<double>(options.timeout));
    if (!job) {
      int worker = in_order ? static_cast<int>(next_taken_ % threads_) : -1;
      throw_worker_timeout(next_taken_, worker, core_->seeds().rank, options.timeout);
    }
    current_ = std::move((*made_)[job->slot]);
    (*made_)[job->slot].reset();
    auto error = pool_->error(job->slot);
    number_ = job->batch;
    --outstanding_;
    bool ended = !error && !current_;
    if (!ended) core_->consumed(number_, job->indices);
    pool_->release(job->slot);
    if (!ended) hand_out();
    if (error) std::rethrow_exception(error);
    return !ended;
  }

  void move_to_device() {
    try {
      bool seen_all = for_each_tensor(*current_, [this](at::Tensor& tensor) { core_->place(tensor); });
      if (!seen_all && !core_->device()->is_cpu()) core_->warn_opaque(typeid(Batch).name());
    } catch (...) {
      current_.reset();  // some of its tensors are elsewhere than the others
      throw;
    }
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
  std::exception_ptr sampler_error_;
};

}  // namespace fabric::detail

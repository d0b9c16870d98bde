#include <fabric/data/worker_pool.h>

#include <dlfcn.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <sstream>
#include <thread>

#include <ATen/Parallel.h>
#include <c10/util/thread_name.h>

#include <fabric/base/log.h>

namespace fabric::detail {
namespace {

/// Several workers with a team of threads each would fight for the cores. at::set_num_threads is no way to prevent
/// that: it also sets the number for all threads that start later, autograd's among them.
void use_one_thread_per_operator() {
  at::get_num_threads();  // sets the thread's number up; later it would undo what follows
  if (auto* symbol = dlsym(RTLD_DEFAULT, "omp_set_num_threads")) reinterpret_cast<void (*)(int)>(symbol)(1);
}

}  // namespace

std::string in_seconds(std::chrono::duration<double> time) {
  std::ostringstream text;
  text << time.count() << " s";
  return text.str();
}

struct WorkerPool::State {
  enum class Status { free, queued, ready };
  struct Slot {
    Status status = Status::free;
    Job job;
    std::vector<std::size_t> indices;
    std::exception_ptr error;
  };
  struct Worker {
    std::condition_variable wake;
    std::thread thread;
    bool done = false;
  };

  State(int workers, std::size_t slots, std::chrono::duration<double> patience, Work work)
      : patience(patience), slots(slots), workers(workers), work(std::move(work)) {}

  /// The queued slot of this worker that comes first in the epoch.
  Slot* next_of(std::size_t worker) {
    Slot* first = nullptr;
    for (std::size_t i = worker; i < slots.size(); i += workers.size())
      if (slots[i].status == Status::queued && (!first || slots[i].job.batch < first->job.batch)) first = &slots[i];
    return first;
  }

  void run(std::size_t worker) {
    c10::setThreadName("fabric_data_" + std::to_string(worker));
    use_one_thread_per_operator();
    std::unique_lock<std::mutex> lock(mutex);
    while (true) {
      Slot* slot = nullptr;
      workers[worker].wake.wait(lock, [&] { return stop.load() || (slot = next_of(worker)) != nullptr; });
      if (stop.load()) break;
      lock.unlock();
      std::exception_ptr error;
      try {
        work(static_cast<int>(worker), slot->job, stop);
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      slot->error = error;
      slot->status = Status::ready;
      batch_ready.notify_one();
    }
    workers[worker].done = true;
    worker_ended.notify_one();
  }

  std::ptrdiff_t count_busy() const {
    return std::count_if(workers.begin(), workers.end(),
                         [](const Worker& worker) { return worker.thread.joinable() && !worker.done; });
  }

  bool stop_all() {
    std::unique_lock<std::mutex> lock(mutex);
    stop = true;
    for (auto& worker : workers) worker.wake.notify_one();
    // After a timeout only those are waited for that have nothing to do.
    constexpr std::chrono::duration<double> kMoment = std::chrono::milliseconds(100);
    auto limit = timed_out ? std::min(patience, kMoment) : patience;
    worker_ended.wait_for(lock, limit, [this] { return count_busy() == 0; });
    auto left = count_busy();
    // A thread that is done needs the lock no more. The others hold this state, so they may outlive the pool.
    for (auto& worker : workers) {
      if (!worker.thread.joinable()) continue;
      if (worker.done)
        worker.thread.join();
      else
        worker.thread.detach();
    }
    lock.unlock();
    if (left > 0)
      log::warn("a loop over a data loader ended, but " + std::to_string(left) +
                " of its worker threads did not come back from the dataset within " + in_seconds(limit) +
                "; they are left to themselves and end when the dataset lets them go");
    return left == 0;
  }

  mutable std::mutex mutex;
  std::condition_variable batch_ready;
  std::condition_variable worker_ended;
  std::atomic<bool> stop = false;
  bool timed_out = false;
  std::chrono::duration<double> patience;
  std::vector<Slot> slots;
  std::vector<Worker> workers;
  Work work;
};

WorkerPool::WorkerPool(int workers, std::size_t slots, std::chrono::duration<double> patience, Work work)
    : state_(std::make_shared<State>(workers, slots, patience, std::move(work))) {
  try {
    for (std::size_t i = 0; i < state_->workers.size(); ++i)
      state_->workers[i].thread = std::thread([state = state_, i] { state->run(i); });
  } catch (...) {
    state_->stop_all();
    throw;
  }
}

WorkerPool::~WorkerPool() { stop(); }

bool WorkerPool::stop() { return state_->stop_all(); }

std::weak_ptr<const void> WorkerPool::life() const { return state_; }

bool WorkerPool::has_room(std::size_t batch) const {
  std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->slots[batch % state_->slots.size()].status == State::Status::free;
}

std::vector<std::size_t>& WorkerPool::index_buffer(std::size_t batch) {
  return state_->slots[batch % state_->slots.size()].indices;
}

void WorkerPool::submit(std::size_t batch, c10::ArrayRef<std::size_t> indices) {
  std::size_t index = batch % state_->slots.size();
  std::lock_guard<std::mutex> lock(state_->mutex);
  auto& slot = state_->slots[index];
  // A copy: the sampler's own list may be drawn anew while a worker that was left behind still reads.
  if (indices.data() != slot.indices.data()) slot.indices.assign(indices.begin(), indices.end());
  slot.job = {batch, index, slot.indices};
  slot.status = State::Status::queued;
  state_->workers[batch % state_->workers.size()].wake.notify_one();
}

std::optional<WorkerPool::Job> WorkerPool::wait(std::optional<std::size_t> batch,
                                                std::chrono::duration<double> timeout) {
  std::unique_lock<std::mutex> lock(state_->mutex);
  auto& slots = state_->slots;
  const State::Slot* found = nullptr;
  auto ready = [&] {
    if (batch) {
      auto& slot = slots[*batch % slots.size()];
      found = slot.status == State::Status::ready ? &slot : nullptr;
    } else {
      found = nullptr;
      for (auto& slot : slots)
        if (slot.status == State::Status::ready && (!found || slot.job.batch < found->job.batch)) found = &slot;
    }
    return found != nullptr;
  };
  // Longer times than a century do not fit into the clock's numbers.
  if (timeout.count() <= 0 || timeout > std::chrono::hours(24 * 365 * 100))
    state_->batch_ready.wait(lock, ready);
  else
    state_->timed_out = !state_->batch_ready.wait_for(lock, timeout, ready);
  return found ? std::optional(found->job) : std::nullopt;
}

std::exception_ptr WorkerPool::error(std::size_t slot) const {
  std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->slots[slot].error;
}

void WorkerPool::release(std::size_t slot) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->slots[slot].error = nullptr;
  state_->slots[slot].status = State::Status::free;
}

}  // namespace fabric::detail

#include "plugins/collectives/communicator/overlap.h"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <utility>

namespace fabric::collectives {

struct Overlap::Shared {
  std::unique_ptr<Communicator> communicator;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Job> jobs;
  bool running = false;
  bool stop = false;
  bool left_to_itself = false;

  // A job whose result is there already has a moment to end.
  bool stop_if_idle(bool in_its_thread) {
    constexpr std::chrono::milliseconds kMoment{100};
    std::unique_lock lock(mutex);
    stop = true;
    changed.notify_all();
    left_to_itself = in_its_thread || !changed.wait_for(lock, kMoment, [this] { return !running && jobs.empty(); });
    return !left_to_itself;
  }
  void run() {
    std::unique_lock lock(mutex);
    while (true) {
      changed.wait(lock, [&] { return stop || !jobs.empty(); });
      if (jobs.empty()) break;
      auto job = std::move(jobs.front());
      jobs.pop_front();
      running = true;
      lock.unlock();
      job(*communicator);
      job = nullptr;  // whatever goes with it may come back here
      lock.lock();
      running = false;
      changed.notify_all();
    }
    // Its communicator is never freed: the process may be in MPI_Finalize by now.
    if (left_to_itself) static_cast<void>(communicator.release());
  }
};

Overlap::Overlap(std::unique_ptr<Communicator> communicator) : shared_(std::make_shared<Shared>()) {
  shared_->communicator = std::move(communicator);
  thread_ = std::thread([shared = shared_] { shared->run(); });
}

// The thread may also be the one that is here, where what a job held was the last to hold this.
Overlap::~Overlap() {
  if (shared_->stop_if_idle(thread_.get_id() == std::this_thread::get_id())) {
    thread_.join();
    shared_->communicator.reset();
  } else {
    thread_.detach();
  }
}

void Overlap::add(Job job) {
  std::lock_guard lock(shared_->mutex);
  shared_->jobs.push_back(std::move(job));
  shared_->changed.notify_all();
}

void Overlap::set_timeout(std::chrono::milliseconds timeout) { shared_->communicator->set_timeout(timeout); }

}  // namespace fabric::collectives

#include <fabric/plugins/checkpoint_io/async_writer.h>

#include <chrono>
#include <condition_variable>
#include <exception>
#include <future>
#include <mutex>
#include <string>
#include <utility>

#include <fabric/base/error.h>
#include <fabric/base/log.h>

#include "plugins/checkpoint_io/async/host_snapshot.h"

namespace fabric {

struct AsyncWriter::Job::Impl {
  std::future<void> work;
};

AsyncWriter::Job::Job(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

AsyncWriter::Job::~Job() { settle(); }

void AsyncWriter::Job::settle() noexcept {
  try {
    wait();
  } catch (const std::exception& error) {
    log::error(std::string("a checkpoint that was being written is lost: ") + error.what());
  } catch (...) {
    log::error("a checkpoint that was being written is lost");
  }
}

bool AsyncWriter::Job::ended() const {
  return !impl_->work.valid() || impl_->work.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
}

void AsyncWriter::Job::wait() {
  if (!impl_->work.valid()) return;
  auto work = std::exchange(impl_->work, {});
  work.get();
}

struct AsyncWriter::Impl {
  HostSnapshot snapshot;
  std::mutex mutex;
  std::condition_variable copied;
  std::shared_ptr<Job> last;  // goes first, so that it ends before the memory that it writes
};

AsyncWriter::AsyncWriter() : impl_(std::make_unique<Impl>()) {}

AsyncWriter::~AsyncWriter() { finish(); }

void AsyncWriter::finish() noexcept {
  if (!impl_->last) return;
  if (auto& work = impl_->last->impl_->work; work.valid()) work.wait();
  impl_->last.reset();
}

void AsyncWriter::wait_for_copy() noexcept {
  std::unique_lock lock(impl_->mutex);
  impl_->copied.wait(lock, [this] { return !copying_.load(); });
}

std::shared_ptr<AsyncWriter::Job> AsyncWriter::start(const Value& values, Write write, const Kept& kept) {
  finish();
  Value copy = impl_->snapshot.take(values, kept.settled, kept.unchanging);
  auto job = std::make_unique<Job::Impl>();
  copying_ = impl_->snapshot.has_more();
  auto copy_rest = [this] {
    if (!copying_) return;
    const auto changed = impl_->snapshot.take_rest();
    {
      std::lock_guard lock(impl_->mutex);
      copying_ = false;
    }
    impl_->copied.notify_all();
    if (changed > 0)
      throw CheckpointError(std::to_string(changed) + " tensors of the state changed while they were copied: only a " +
                            "wrapped optimizer's step may change parameters then. Leave out copy_beside");
  };
  auto work = [copy_rest, copy = std::move(copy), write = std::move(write)]() mutable {
    const Value mine = std::move(copy);  // goes here, not where the training waits for the next save
    copy_rest();
    write(mine);
  };
  try {
    job->work = std::async(std::launch::async, std::move(work));
  } catch (...) {
    copying_ = false;  // there is no thread that would
    throw;
  }
  impl_->last = std::shared_ptr<Job>(new Job(std::move(job)));
  return impl_->last;
}

}  // namespace fabric

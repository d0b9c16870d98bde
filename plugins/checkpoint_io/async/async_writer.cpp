#include <fabric/plugins/checkpoint_io/async_writer.h>

#include <chrono>
#include <exception>
#include <future>
#include <string>
#include <utility>

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
  std::shared_ptr<Job> last;  // goes first, so that it ends before the memory that it writes
};

AsyncWriter::AsyncWriter() : impl_(std::make_unique<Impl>()) {}

AsyncWriter::~AsyncWriter() { finish(); }

void AsyncWriter::finish() noexcept {
  if (!impl_->last) return;
  if (auto& work = impl_->last->impl_->work; work.valid()) work.wait();
  impl_->last.reset();
}

std::shared_ptr<AsyncWriter::Job> AsyncWriter::start(const Value& values, Write write,
                                                     const std::unordered_set<const void*>& settled) {
  finish();
  Value copy = impl_->snapshot.take(values, settled);
  auto job = std::make_unique<Job::Impl>();
  job->work = std::async(std::launch::async, [copy = std::move(copy), write = std::move(write)] { write(copy); });
  impl_->last = std::shared_ptr<Job>(new Job(std::move(job)));
  return impl_->last;
}

}  // namespace fabric

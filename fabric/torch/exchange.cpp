#include "fabric/torch/exchange_internal.h"

#include <algorithm>
#include <utility>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>

#include "fabric/base/broken_pipe_internal.h"
#include "fabric/torch/pages_internal.h"

namespace fabric::torch_gloo {

Exchange::Exchange(Works works, std::vector<at::Tensor> tensors, std::function<void()> last, c10d::OpType type)
    : Work(-1, type), works_(std::move(works)), tensors_(std::move(tensors)), last_(std::move(last)) {}

void Exchange::run(std::chrono::milliseconds timeout) {
  std::exception_ptr failure;
  for (auto& work : works_) {
    try {
      work->wait(timeout);
    } catch (...) {
      if (!failure) failure = std::current_exception();
    }
  }
  works_.clear();
  try {
    if (!failure && last_) last_();
  } catch (...) {
    failure = std::current_exception();
  }
  last_ = nullptr;
  finish(failure);
}

ExchangeThread::~ExchangeThread() {
  {
    std::lock_guard lock(mutex_);
    ended_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void ExchangeThread::add(c10::intrusive_ptr<Exchange> exchange, std::chrono::milliseconds timeout) {
  std::lock_guard lock(mutex_);
  if (!thread_.joinable()) {
    IgnoreBrokenPipe in_its_thread;
    thread_ = std::thread([this] { work(); });
  }
  jobs_.push_back({std::move(exchange), timeout});
  changed_.notify_all();
}

bool ExchangeThread::is_busy() {
  std::lock_guard lock(mutex_);
  return runs_ || !jobs_.empty();
}

void ExchangeThread::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return ended_ || !jobs_.empty(); });
    if (jobs_.empty()) return;
    Job job = std::move(jobs_.front());
    jobs_.pop_front();
    runs_ = true;
    lock.unlock();
    job.exchange->run(job.timeout);
    job.exchange.reset();
    lock.lock();
    runs_ = false;
  }
}

at::Tensor ArrivalPool::take(std::int64_t bytes) {
  {
    std::lock_guard lock(mutex_);
    auto fits = [&](const at::Tensor& buffer) {
      const auto size = static_cast<std::int64_t>(buffer.nbytes());
      return size >= bytes && size <= 2 * bytes + 4096;
    };
    auto found = std::find_if(free_.begin(), free_.end(), fits);
    if (found != free_.end()) {
      at::Tensor buffer = std::move(*found);
      free_.erase(found);
      return buffer;
    }
  }
  c10::InferenceMode outside(false);
  return bytes < kLeastPages ? at::empty({bytes}, at::kByte) : pages({bytes});
}

void ArrivalPool::give(at::Tensor buffer) {
  // More than this many at once are rare: what is used least goes.
  constexpr std::size_t kMost = 32;
  std::lock_guard lock(mutex_);
  if (free_.size() >= kMost) free_.erase(free_.begin());
  free_.push_back(std::move(buffer));
}

void add_in_order(at::Tensor& out, const at::Tensor& own, const std::vector<at::Tensor>& others, int rank) {
  c10::InferenceMode outside(false);
  at::NoGradGuard no_grad;
  auto part = [&](std::size_t of) -> const at::Tensor& {
    const auto self = static_cast<std::size_t>(rank);
    return of == self ? own : others[of < self ? of : of - 1];
  };
  at::add_out(out, part(0), part(1));
  for (std::size_t i = 2; i <= others.size(); ++i) out.add_(part(i));
}

}  // namespace fabric::torch_gloo

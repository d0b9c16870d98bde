#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/Work.hpp>

namespace fabric::torch_gloo {

/// A gather or a reduction of pieces, made of sends and receives between every two ranks. LibTorch's own, over Gloo,
/// copy the whole once more, and reduce the whole where each rank needs its piece.
class Exchange : public c10d::Work {
 public:
  using Works = std::vector<c10::intrusive_ptr<c10d::Work>>;
  /// The works are under way. `last` is done once all have arrived.
  Exchange(Works works, std::vector<at::Tensor> tensors, std::function<void()> last, c10d::OpType type);
  void run(std::chrono::milliseconds timeout);
  std::vector<at::Tensor> result() override { return tensors_; }

 private:
  Works works_;
  std::vector<at::Tensor> tensors_;  // kept as long as they are written and read
  std::function<void()> last_;
};

/// Brings exchanges to their end, one after another, in a thread of its own that begins with the first.
class ExchangeThread {
 public:
  ExchangeThread() = default;
  /// Waits for those that are not done.
  ~ExchangeThread();
  ExchangeThread(const ExchangeThread&) = delete;
  ExchangeThread& operator=(const ExchangeThread&) = delete;
  void add(c10::intrusive_ptr<Exchange> exchange, std::chrono::milliseconds timeout);
  bool is_busy();

 private:
  struct Job {
    c10::intrusive_ptr<Exchange> exchange;
    std::chrono::milliseconds timeout;
  };
  void work();
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> jobs_;
  bool runs_ = false, ended_ = false;
  std::thread thread_;
};

/// Memory for pieces that arrive, used again by the exchanges that come after.
class ArrivalPool {
 public:
  at::Tensor take(std::int64_t bytes);
  void give(at::Tensor buffer);

 private:
  std::mutex mutex_;
  std::vector<at::Tensor> free_;
};

/// Adds the pieces in the order of the ranks, so that every run gives the same; `own` stands at `rank`.
void add_in_order(at::Tensor& out, const at::Tensor& own, const std::vector<at::Tensor>& others, int rank);

}  // namespace fabric::torch_gloo

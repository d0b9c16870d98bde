#pragma once

#include <vector>

#include <torch/csrc/distributed/c10d/Work.hpp>

#include "plugins/collectives/communicator/communicator.h"

namespace fabric::collectives {

/// An operation that is done when it is returned.
class DoneWork : public c10d::Work {
 public:
  DoneWork(int rank, c10d::OpType type, std::vector<at::Tensor> outputs)
      : Work(rank, type), outputs_(std::move(outputs)) {
    completed_ = true;
  }
  bool isCompleted() override { return true; }
  bool isSuccess() const override { return true; }
  bool wait(std::chrono::milliseconds = kNoTimeout) override { return true; }
  void synchronize() override {}
  std::vector<at::Tensor> result() override { return outputs_; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override {
    if (!future_) {
      future_ = c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()));
      future_->markCompleted(c10::IValue(outputs_));
    }
    return future_;
  }

 private:
  std::vector<at::Tensor> outputs_;
  c10::intrusive_ptr<c10::ivalue::Future> future_;  // made when asked for: most callers only wait
};

/// A send or receive under way.
class PendingWork : public c10d::Work {
 public:
  /// `landing` is what is filled; it is copied to `target` at the end where that is another tensor.
  PendingWork(int rank, c10d::OpType type, std::unique_ptr<PendingTransfer> pending, at::Tensor landing,
              at::Tensor target)
      : Work(rank, type), pending_(std::move(pending)), landing_(std::move(landing)), target_(std::move(target)) {}
  bool isCompleted() override {
    if (!finished_ && pending_->done()) arrive();
    return finished_;
  }
  bool isSuccess() const override { return finished_; }
  int sourceRank() const override { return pending_->source(); }
  bool wait(std::chrono::milliseconds = kNoTimeout) override {
    if (!finished_) {
      pending_->wait();
      arrive();
    }
    return true;
  }

 private:
  void arrive() {
    finished_ = true;
    if (target_.defined() && !target_.is_same(landing_)) target_.copy_(landing_);
  }
  std::unique_ptr<PendingTransfer> pending_;
  at::Tensor landing_, target_;
  bool finished_ = false;
};

/// An operation that a thread carries out; it is finished through its future.
class ThreadWork : public c10d::Work {
 public:
  ThreadWork(int rank, c10d::OpType type, std::vector<at::Tensor> outputs)
      : Work(rank, type),
        outputs_(std::move(outputs)),
        future_(c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()))) {}
  bool isCompleted() override { return future_->completed(); }
  bool isSuccess() const override { return future_->completed() && !future_->hasError(); }
  bool wait(std::chrono::milliseconds = kNoTimeout) override {
    future_->waitAndThrow();
    return true;
  }
  std::vector<at::Tensor> result() override { return outputs_; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future_; }
  void succeed() { future_->markCompleted(c10::IValue(outputs_)); }
  void fail(std::exception_ptr error) { future_->setError(std::move(error)); }

 private:
  std::vector<at::Tensor> outputs_;
  c10::intrusive_ptr<c10::ivalue::Future> future_;
};

}  // namespace fabric::collectives

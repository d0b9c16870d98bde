// Each call is three things. For the clocks it is a kernel on the group's stream, which waits for the caller's. For the
// caller it is a Work with an event at its end. And the bytes are moved by the group's thread, over a backend for CPU
// tensors, on the same memory: whoever touches it before that has happened waits for the thread, so that a wait that a
// program forgets never changes a number, and always shows in the clocks.
#include "tests/support/sim_device/process_group.h"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <thread>

#include <ATen/core/ivalue_inl.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>

#include "tests/support/sim_device/kernel.h"
#include "tests/support/sim_device/streams.h"

namespace sim {
namespace {

using Tensors = std::vector<at::Tensor>;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;
using c10d::OpType;
using Done = std::shared_future<void>;

// Runs what it is given, one after another. What fails leaves its error behind, and the rest fails with it: the ranks
// are out of step.
class GroupThread {
 public:
  GroupThread() : thread_([this] { run(); }) {}
  ~GroupThread() {
    {
      std::lock_guard lock(mutex_);
      ends_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  void add(std::function<void()> job, std::promise<void> promise) {
    std::lock_guard lock(mutex_);
    jobs_.push_back({std::move(job), std::move(promise)});
    changed_.notify_all();
  }
  void abort(const std::string& why) {
    std::lock_guard lock(mutex_);
    if (!failure_) failure_ = std::make_exception_ptr(std::runtime_error(why));
  }

 private:
  struct Job {
    std::function<void()> work;
    std::promise<void> promise;
  };
  std::exception_ptr failure() {
    std::lock_guard lock(mutex_);
    return failure_;
  }
  void carry_out(Job& job) {
    auto before = failure();
    if (!before) {
      try {
        job.work();
      } catch (...) {
        std::lock_guard lock(mutex_);
        if (!failure_) failure_ = std::current_exception();
        before = failure_;
      }
    }
    job.work = nullptr;  // frees the tensors before anybody goes on
    if (before)
      job.promise.set_exception(before);
    else
      job.promise.set_value();
  }
  void run() {
    for (;;) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return ends_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      Job job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      carry_out(job);
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> jobs_;
  std::exception_ptr failure_;
  bool ends_ = false;
  std::thread thread_;
};

class SimWork : public c10d::Work {
 public:
  SimWork(int rank, OpType type, Tensors outputs, const c10::Stream& stream, Done done, bool holds_host)
      : Work(rank, type),
        outputs_(std::move(outputs)),
        device_(stream.device()),
        end_(stream.device_type()),
        done_(std::move(done)),
        holds_host_(holds_host) {
    end_.record(stream);
    c10::StreamGuard guard(stream);
    future_ = c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()),
                                                       std::vector<c10::Device>{device_});
    future_->markCompleted(c10::IValue(outputs_));
  }
  bool isCompleted() override { return is_done() && end_.query(); }
  bool isSuccess() const override { return is_done() && !failure(); }
  std::exception_ptr exception() const override { return is_done() ? failure() : nullptr; }
  bool wait(std::chrono::milliseconds timeout = kNoTimeout) override {
    if (is_done()) done_.get();
    if (timeout != kNoTimeout && done_.wait_for(timeout) != std::future_status::ready)
      TORCH_CHECK_WITH(DistBackendError, false, "sim: the operation took more than ", timeout.count(), " ms");
    synchronize();
    return true;
  }
  void synchronize() override {
    end_.block(c10::impl::getDeviceGuardImpl(device_.type())->getStream(device_));
    if (!holds_host_) return;
    done_.get();
    end_.synchronize();
  }
  Tensors result() override { return outputs_; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future_; }

 private:
  bool is_done() const { return done_.wait_for(std::chrono::seconds(0)) == std::future_status::ready; }
  std::exception_ptr failure() const {
    try {
      done_.get();
      return nullptr;
    } catch (...) {
      return std::current_exception();
    }
  }

  Tensors outputs_;
  c10::Device device_;
  c10::Event end_;
  Done done_;
  bool holds_host_;
  c10::intrusive_ptr<c10::ivalue::Future> future_;
};

// What an operation is given: the tensors that it reads and writes, in lists, on the device or as the carrier sees
// them.
struct Lists {
  std::vector<Tensors> read, written;
};
using Operation = std::function<WorkPtr(c10d::Backend& carrier, Lists& lists)>;

class SimGroup : public c10d::Backend {
 public:
  SimGroup(const fabric::BackendRequest& request, std::shared_ptr<fabric::CollectiveBackend> carrier)
      : Backend(request.rank, request.size),
        stream_(c10::impl::getDeviceGuardImpl(c10::DeviceType::PrivateUse1)
                    ->getStreamFromGlobalPool(request.device, /*isHighPriority=*/false)),
        carrier_(std::move(carrier)) {}
  ~SimGroup() override { carrier_->break_connections(); }

  const std::string getBackendName() const override { return "sim"; }
  bool supportsCoalescing() const override { return true; }
  void setTimeout(std::chrono::milliseconds timeout) override { carrier_->c10d()->setTimeout(timeout); }
  void abort() override {
    thread_.abort("sim: the group was aborted");
    carrier_->break_connections();
  }
  void shutdown() override { abort(); }

  WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override {
    return launch("all_reduce", OpType::ALLREDUCE, {{}, {tensors}}, tensors,
                  [options](auto& carrier, Lists& lists) { return carrier.allreduce(lists.written[0], options); });
  }
  WorkPtr allreduce_coalesced(Tensors& tensors, const c10d::AllreduceCoalescedOptions& options) override {
    return launch(
        "all_reduce", OpType::ALLREDUCE_COALESCED, {{}, {tensors}}, tensors,
        [options](auto& carrier, Lists& lists) { return carrier.allreduce_coalesced(lists.written[0], options); });
  }
  WorkPtr broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override {
    return launch("broadcast", OpType::BROADCAST, {{}, {tensors}}, tensors,
                  [options](auto& carrier, Lists& lists) { return carrier.broadcast(lists.written[0], options); });
  }
  WorkPtr reduce(Tensors& tensors, const c10d::ReduceOptions& options) override {
    return launch("reduce", OpType::REDUCE, {{}, {tensors}}, tensors,
                  [options](auto& carrier, Lists& lists) { return carrier.reduce(lists.written[0], options); });
  }
  WorkPtr allgather(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::AllgatherOptions& options) override {
    return launch(
        "all_gather", OpType::ALLGATHER, {{inputs}, outputs}, outputs.at(0),
        [options](auto& carrier, Lists& lists) { return carrier.allgather(lists.written, lists.read[0], options); });
  }
  WorkPtr _allgather_base(at::Tensor& output, at::Tensor& input, const c10d::AllgatherOptions& options) override {
    return launch("all_gather", OpType::_ALLGATHER_BASE, {{{input}}, {{output}}}, {output},
                  [options](auto& carrier, Lists& lists) {
                    return carrier._allgather_base(lists.written[0][0], lists.read[0][0], options);
                  });
  }
  WorkPtr allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::AllgatherOptions& options) override {
    return launch("all_gather", OpType::COALESCED, {{inputs}, {outputs}}, outputs,
                  [options](auto& carrier, Lists& lists) {
                    return carrier.allgather_into_tensor_coalesced(lists.written[0], lists.read[0], options);
                  });
  }
  WorkPtr reduce_scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                         const c10d::ReduceScatterOptions& options) override {
    return launch("reduce_scatter", OpType::REDUCE_SCATTER, {inputs, {outputs}}, outputs,
                  [options](auto& carrier, Lists& lists) {
                    return carrier.reduce_scatter(lists.written[0], lists.read, options);
                  });
  }
  WorkPtr _reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                               const c10d::ReduceScatterOptions& options) override {
    return launch("reduce_scatter", OpType::_REDUCE_SCATTER_BASE, {{{input}}, {{output}}}, {output},
                  [options](auto& carrier, Lists& lists) {
                    return carrier._reduce_scatter_base(lists.written[0][0], lists.read[0][0], options);
                  });
  }
  WorkPtr reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::ReduceScatterOptions& options) override {
    return launch("reduce_scatter", OpType::COALESCED, {{inputs}, {outputs}}, outputs,
                  [options](auto& carrier, Lists& lists) {
                    return carrier.reduce_scatter_tensor_coalesced(lists.written[0], lists.read[0], options);
                  });
  }
  WorkPtr gather(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::GatherOptions& options) override {
    return launch(
        "gather", OpType::GATHER, {{inputs}, outputs}, outputs.empty() ? Tensors{} : outputs[0],
        [options](auto& carrier, Lists& lists) { return carrier.gather(lists.written, lists.read[0], options); });
  }
  WorkPtr scatter(Tensors& outputs, std::vector<Tensors>& inputs, const c10d::ScatterOptions& options) override {
    return launch("scatter", OpType::SCATTER, {inputs, {outputs}}, outputs, [options](auto& carrier, Lists& lists) {
      return carrier.scatter(lists.written[0], lists.read, options);
    });
  }
  WorkPtr alltoall_base(at::Tensor& output, at::Tensor& input, std::vector<std::int64_t>& output_sizes,
                        std::vector<std::int64_t>& input_sizes, const c10d::AllToAllOptions& options) override {
    return launch("all_to_all", OpType::ALLTOALL_BASE, {{{input}}, {{output}}}, {output},
                  [options, to = output_sizes, from = input_sizes](auto& carrier, Lists& lists) mutable {
                    return carrier.alltoall_base(lists.written[0][0], lists.read[0][0], to, from, options);
                  });
  }
  WorkPtr alltoall(Tensors& outputs, Tensors& inputs, const c10d::AllToAllOptions& options) override {
    return launch(
        "all_to_all", OpType::ALLTOALL, {{inputs}, {outputs}}, outputs,
        [options](auto& carrier, Lists& lists) { return carrier.alltoall(lists.written[0], lists.read[0], options); });
  }
  WorkPtr send(Tensors& tensors, int rank, int tag) override {
    return launch("send", OpType::SEND, {{tensors}, {}}, tensors,
                  [rank, tag](auto& carrier, Lists& lists) { return carrier.send(lists.read[0], rank, tag); });
  }
  WorkPtr recv(Tensors& tensors, int rank, int tag) override {
    return launch("recv", OpType::RECV, {{}, {tensors}}, tensors,
                  [rank, tag](auto& carrier, Lists& lists) { return carrier.recv(lists.written[0], rank, tag); });
  }
  // The host waits for it, as it does with NCCL.
  WorkPtr barrier(const c10d::BarrierOptions& options) override {
    return launch(
        "barrier", OpType::BARRIER, {}, {}, [options](auto& carrier, Lists&) { return carrier.barrier(options); },
        /*holds_host=*/true);
  }

  // Operations between these two begin together, so that two ranks may send to each other.
  void startCoalescing() override { group_open_ = true; }
  WorkPtr endCoalescing() override {
    group_open_ = false;
    auto operations = std::move(grouped_);
    grouped_ = {};
    return enqueue(OpType::COALESCED, std::exchange(grouped_outputs_, {}), std::move(operations), false);
  }

 private:
  struct Prepared {
    Operation operation;
    Lists on_host;
    Lists on_device;           // kept alive until it has run
    std::vector<Done> before;  // of other groups, on the same memory
  };

  static std::vector<Tensors> on_host(Kernel& kernel, const std::vector<Tensors>& lists, bool writes) {
    std::vector<Tensors> made;
    for (const auto& list : lists) {
      made.emplace_back();
      for (const auto& tensor : list) made.back().push_back(kernel.on_host(tensor, writes));
    }
    return made;
  }

  void wait_for_callers_stream(const Lists& lists) {
    auto current = c10::impl::getDeviceGuardImpl(stream_.device_type())->getStream(stream_.device());
    c10::Event event(stream_.device_type());
    event.record(current);
    event.block(stream_);
    for (const auto* side : {&lists.read, &lists.written})
      for (const auto& list : *side)
        for (const auto& tensor : list) tensor.record_stream(stream_);
  }

  WorkPtr launch(const char* name, OpType type, Lists lists, const Tensors& outputs, Operation operation,
                 bool holds_host = false) {
    wait_for_callers_stream(lists);
    Kernel kernel(name);
    kernel.set_device(stream_.device_index());
    Prepared prepared{
        std::move(operation), {on_host(kernel, lists.read, false), on_host(kernel, lists.written, true)}, {}, {}};
    prepared.before = kernel.begin_elsewhere(place_of(stream_), current());
    prepared.on_device = std::move(lists);
    if (!group_open_) {
      std::vector<Prepared> one;
      one.push_back(std::move(prepared));
      return enqueue(type, outputs, std::move(one), holds_host);
    }
    grouped_.push_back(std::move(prepared));
    grouped_outputs_.insert(grouped_outputs_.end(), outputs.begin(), outputs.end());
    return c10::make_intrusive<SimWork>(getRank(), type, outputs, stream_, current().done, false);
  }

  // What is put together now.
  const UnderWay& current() {
    static std::atomic<std::uint64_t> tickets{0};
    if (!current_.done.valid()) current_ = {++tickets, promise_.get_future().share()};
    return current_;
  }

  WorkPtr enqueue(OpType type, const Tensors& outputs, std::vector<Prepared> operations, bool holds_host) {
    Done done = current().done;
    auto shared = std::make_shared<std::vector<Prepared>>(std::move(operations));
    thread_.add(
        [shared, carrier = carrier_] {
          std::vector<WorkPtr> works;
          for (auto& each : *shared) {
            for (const auto& earlier : each.before) earlier.wait();
            works.push_back(each.operation(*carrier->c10d(), each.on_host));
          }
          for (const auto& work : works)
            if (work) work->wait();
        },
        std::move(promise_));
    promise_ = {};
    current_ = {};
    return c10::make_intrusive<SimWork>(getRank(), type, outputs, stream_, done, holds_host);
  }

  c10::Stream stream_;
  std::shared_ptr<fabric::CollectiveBackend> carrier_;
  std::promise<void> promise_;
  UnderWay current_;
  bool group_open_ = false;
  std::vector<Prepared> grouped_;
  Tensors grouped_outputs_;
  GroupThread thread_;  // ends first
};

class SimBackend : public fabric::CollectiveBackend {
 public:
  SimBackend(c10::intrusive_ptr<SimGroup> group, std::shared_ptr<fabric::CollectiveBackend> carrier)
      : CollectiveBackend(std::move(group)), carrier_(std::move(carrier)) {}
  std::string describe() const override { return "a stream of its own, over " + carrier_->describe(); }
  bool reduces(at::ScalarType type, fabric::ReduceOp op) const override { return carrier_->reduces(type, op); }
  bool divides(at::ScalarType type) const override { return carrier_->divides(type); }
  void break_connections() override { carrier_->break_connections(); }

 private:
  std::shared_ptr<fabric::CollectiveBackend> carrier_;
};

}  // namespace

std::shared_ptr<fabric::CollectiveBackend> make_process_group(const fabric::BackendRequest& request) {
  auto for_carrier = request;
  for_carrier.device = c10::kCPU;
  auto carrier = fabric::make_backend(request.size == 1 ? "single" : "shm", for_carrier);
  return std::make_shared<SimBackend>(c10::make_intrusive<SimGroup>(request, carrier), carrier);
}

}  // namespace sim

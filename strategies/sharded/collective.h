#pragma once

#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <fabric/base/error.h>
#include <fabric/plugins/collectives/process_group.h>

namespace fabric::sharded {

/// Runs `work`, which all ranks of the group have come to do together. What keeps this rank from it, its memory
/// perhaps, fails the group: the others would wait for this rank as long as the timeout lets them.
template <class Work>
void together(const ProcessGroup& group, const char* name, Work&& work) {
  const auto begin = std::chrono::steady_clock::now();
  try {
    work();
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    if (group.size() == 1) throw;
    group.report_failure(name, error, begin);
  }
}

/// Operations that are started together and waited for together. Names are literals.
class Collectives {
 public:
  void all_gather(const ProcessGroup& group, const char* name, at::Tensor output, at::Tensor piece) {
    if (piece.numel() == 0) return;
    if (group.size() == 1) {
      output.copy_(piece);
      return;
    }
    start(group, name, piece, [&](c10d::Backend& backend) { return backend._allgather_base(output, piece); });
  }
  /// Sums.
  void reduce_scatter(const ProcessGroup& group, const char* name, at::Tensor piece, at::Tensor input) {
    if (piece.numel() == 0) return;
    if (group.size() == 1) {
      piece.copy_(input);
      return;
    }
    c10d::ReduceScatterOptions options;
    options.reduceOp = c10d::ReduceOp::SUM;
    start(group, name, piece,
          [&](c10d::Backend& backend) { return backend._reduce_scatter_base(piece, input, options); });
  }
  /// Sums.
  void all_reduce(const ProcessGroup& group, const char* name, at::Tensor tensor) {
    if (group.size() == 1 || tensor.numel() == 0) return;
    std::vector<at::Tensor> one{tensor};
    c10d::AllreduceOptions options;
    options.reduceOp = c10d::ReduceOp::SUM;
    start(group, name, tensor, [&](c10d::Backend& backend) { return backend.allreduce(one, options); });
  }
  void wait() {
    auto works = std::exchange(works_, {});
    for (auto& [group, name, work] : works) group.wait_for(name, work);
  }

 private:
  struct Started {
    ProcessGroup group;
    const char* name;
    c10::intrusive_ptr<c10d::Work> work;
  };
  template <class Start>
  void start(const ProcessGroup& group, const char* name, const at::Tensor& tensor, Start&& run) {
    auto begin = std::chrono::steady_clock::now();
    try {
      works_.push_back({group, name, run(*group.c10d()->getBackend(tensor.device().type()))});
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {
      group.report_failure(name, error, begin);
    }
  }
  std::vector<Started> works_;
};

}  // namespace fabric::sharded

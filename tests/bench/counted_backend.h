#pragma once
// A process group over Gloo that counts the elements that its large operations move.

#include <algorithm>
#include <cstdint>

#include <fabric/plugins/collectives/backend.h>

namespace bench {

/// Elements sent per rank by algorithms that move no element twice.
struct Moved {
  double gathered = 0, scattered = 0, reduced = 0;
  double all() const { return gathered + scattered + reduced; }
};
inline Moved& moved() {
  static Moved moved;
  return moved;
}

class CountedBackend : public c10d::Backend {
 public:
  explicit CountedBackend(c10::intrusive_ptr<c10d::Backend> inner)
      : Backend(inner->getRank(), inner->getSize()), inner_(std::move(inner)) {}
  using Work = c10::intrusive_ptr<c10d::Work>;
  using Tensors = std::vector<at::Tensor>;

  Work _allgather_base(at::Tensor& output, at::Tensor& input, const c10d::AllgatherOptions& options) override {
    if (counts(input)) moved().gathered += part(output);
    return inner_->_allgather_base(output, input, options);
  }
  Work _reduce_scatter_base(at::Tensor& output, at::Tensor& input, const c10d::ReduceScatterOptions& options) override {
    if (counts(input)) moved().scattered += part(input);
    return inner_->_reduce_scatter_base(output, input, options);
  }
  Work allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override {
    for (const auto& tensor : tensors)
      if (counts(tensor)) moved().reduced += 2 * part(tensor);
    return inner_->allreduce(tensors, options);
  }
  Work broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override {
    return inner_->broadcast(tensors, options);
  }
  Work allgather(std::vector<Tensors>& out, Tensors& in, const c10d::AllgatherOptions& options) override {
    return inner_->allgather(out, in, options);
  }
  Work gather(std::vector<Tensors>& out, Tensors& in, const c10d::GatherOptions& options) override {
    return inner_->gather(out, in, options);
  }
  Work scatter(Tensors& out, std::vector<Tensors>& in, const c10d::ScatterOptions& options) override {
    return inner_->scatter(out, in, options);
  }
  Work barrier(const c10d::BarrierOptions& options) override { return inner_->barrier(options); }
  const std::string getBackendName() const override { return "counted"; }
  void setSequenceNumberForGroup() override {}
  uint64_t getSequenceNumberForGroup() override { return 0; }

 private:
  // Integers are what ranks compare.
  static bool counts(const at::Tensor& tensor) { return tensor.is_floating_point(); }
  double part(const at::Tensor& tensor) const {
    return static_cast<double>(tensor.numel()) * (getSize() - 1) / getSize();
  }
  c10::intrusive_ptr<c10d::Backend> inner_;
};

inline void register_counted() {
  static const bool once = [] {
    auto make = [](const fabric::BackendRequest& request) {
      auto gloo = fabric::make_backend("gloo", request);
      return std::make_shared<fabric::CollectiveBackend>(c10::make_intrusive<CountedBackend>(gloo->c10d()));
    };
    fabric::register_backend("counted", {.make = make});
    return true;
  }();
  (void)once;
}

}  // namespace bench

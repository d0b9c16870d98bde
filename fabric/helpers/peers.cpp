#include <fabric/helpers/peers.h>

#include <cstring>
#include <utility>

#include <ATen/ops/empty.h>

#include <fabric/fabric.h>
#include <fabric/plugins/collectives/run_together.h>

namespace fabric {
namespace {

const ProcessGroup& group_of(const Fabric& fabric) {
  const auto& strategy = fabric.strategy();
  if (strategy->requires_launch() && !fabric.launched())
    throw MisuseError(
        "a helper was given this Fabric before fabric.launch(); call fabric.launch() first, so that the " +
        std::string("other ranks are known"));
  return strategy->process_group();
}

}  // namespace

Peers::Peers(const Fabric& fabric) : Peers(group_of(fabric)) {}

Peers::Peers(ProcessGroup group) : group_(std::move(group)) {}

bool Peers::any(bool decision) const { return is_alone() ? decision : group_.any(decision); }

bool Peers::all(bool decision) const { return is_alone() ? decision : group_.all(decision); }

double Peers::reduce(double value, ReduceOp op) const {
  if (is_alone()) return value;
  at::Tensor tensor = at::empty({1}, at::kDouble);
  *tensor.mutable_data_ptr<double>() = value;
  group_.all_reduce_(tensor, op);
  return *tensor.const_data_ptr<double>();
}

double Peers::max(double value) const { return reduce(value, ReduceOp::max); }

double Peers::sum(double value) const { return reduce(value, ReduceOp::sum); }

double Peers::mean(double value) const { return reduce(value, ReduceOp::mean); }

std::vector<double> Peers::sum(std::vector<double> values) const {
  if (is_alone() || values.empty()) return values;
  at::Tensor tensor = at::empty({static_cast<std::int64_t>(values.size())}, at::kDouble);
  std::memcpy(tensor.mutable_data_ptr<double>(), values.data(), values.size() * sizeof(double));
  group_.all_reduce_(tensor, ReduceOp::sum);
  std::memcpy(values.data(), tensor.const_data_ptr<double>(), values.size() * sizeof(double));
  return values;
}

Value Peers::broadcast(const Value& value, int src) const {
  return is_alone() ? value : group_.broadcast_value(value, src);
}

std::vector<Value> Peers::gather(const Value& value) const {
  if (is_alone()) return {value};
  return group_.all_gather_value(value);
}

void Peers::run_together(const std::string& operation, const std::function<void()>& work, ErrorKind foreign) const {
  if (is_alone()) return work();
  fabric::run_together(group_, operation, work, foreign);
}

void Peers::barrier(const std::string& name) const {
  if (!is_alone()) group_.barrier(name);
}

}  // namespace fabric

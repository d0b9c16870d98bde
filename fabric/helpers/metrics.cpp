#include <fabric/helpers/metrics.h>

#include <cmath>

#include <ATen/ops/stack.h>
#include <c10/core/GradMode.h>

namespace fabric {
namespace {

std::string shape_of(const at::Tensor& tensor) { return to_string(Value(tensor)); }

bool is_class_tensor(const at::Tensor& tensor) { return at::isIntegralType(tensor.scalar_type(), true); }

}  // namespace

at::Tensor detail::without_repeated(std::size_t repeated, const at::Tensor& rows) {
  auto count = static_cast<std::int64_t>(repeated);
  if (count == 0) return rows;
  if (rows.dim() == 0 || rows.size(0) < count)
    throw MisuseError("the last " + std::to_string(count) +
                      " samples of the batch do not count, but there is not one row for each sample; given " +
                      shape_of(rows));
  return rows.narrow(0, 0, rows.size(0) - count);
}

void MeanMetric::update(double value, double weight) {
  if (!(weight >= 0)) throw MisuseError("MeanMetric: a weight must be 0 or more, given " + std::to_string(weight));
  if (weight == 0) return;  // 0 * inf would be NaN
  sum_ += value * weight;
  weight_ += weight;
}

void MeanMetric::update(const at::Tensor& values, double weight) {
  if (!(weight >= 0)) throw MisuseError("MeanMetric: a weight must be 0 or more, given " + std::to_string(weight));
  if (weight == 0 || values.numel() == 0) return;
  at::AutoGradMode no_grad(false);
  at::Tensor sum = values.detach().sum(at::kDouble).mul(weight);
  weight_ += weight * static_cast<double>(values.numel());
  if (sum.is_cpu())
    sum_ += sum.item<double>();
  else if (sum_on_device_.defined() && sum_on_device_.device() == sum.device())
    sum_on_device_.add_(sum);
  else {
    sum_ = local_sum();
    sum_on_device_ = sum;
  }
}

double MeanMetric::local_sum() const { return sum_on_device_.defined() ? sum_ + sum_on_device_.item<double>() : sum_; }

double MeanMetric::compute() const {
  auto totals = peers_.sum(std::vector<double>{local_sum(), weight_});
  if (totals[1] == 0)
    throw MisuseError(
        "MeanMetric: there is nothing to take the mean of; call update before compute, on at least one rank");
  return totals[0] / totals[1];
}

double MeanMetric::compute_and_reset() {
  double mean = compute();
  reset();
  return mean;
}

void MeanMetric::reset() {
  sum_ = weight_ = 0;
  sum_on_device_.reset();
}

Value MeanMetric::state_dict() const {
  auto totals = peers_.sum(std::vector<double>{local_sum(), weight_});
  return Value::Map{{"sum", totals[0]}, {"weight", totals[1]}};
}

void MeanMetric::load_state_dict(const Value& state) {
  // All of it counts on one rank, so that the mean over the ranks is the old one.
  bool mine = peers_.rank() == 0;
  double sum = state.at("sum").as_double(), weight = state.at("weight").as_double();
  reset();
  if (mine) sum_ = sum, weight_ = weight;
}

void Accuracy::update(const at::Tensor& predictions, const at::Tensor& target, std::int64_t ignore_index) {
  at::AutoGradMode no_grad(false);
  if (!is_class_tensor(target))
    throw MisuseError("Accuracy: the target must hold classes, integers of shape [N]; given " + shape_of(target));
  bool scores = predictions.dim() == target.dim() + 1;
  if (!scores && !is_class_tensor(predictions))
    throw MisuseError("Accuracy: for a target of " + shape_of(target) +
                      " the predictions must be scores with the classes as second dimension or predicted classes, "
                      "integers of the target's shape; given " +
                      shape_of(predictions));
  at::Tensor classes = scores ? predictions.detach().argmax(1) : predictions.detach();
  if (classes.sizes() != target.sizes())
    throw MisuseError("Accuracy: predictions " + shape_of(predictions) + " do not fit the target " + shape_of(target));
  at::Tensor counted = target.ne(ignore_index);
  at::Tensor correct = classes.eq(target).logical_and_(counted);
  at::Tensor both = at::stack({correct.sum(), counted.sum()});
  if (both.is_cpu()) {
    correct_ += static_cast<double>(both[0].item<std::int64_t>());
    total_ += static_cast<double>(both[1].item<std::int64_t>());
  } else if (on_device_.defined() && on_device_.device() == both.device()) {
    on_device_.add_(both);
  } else {
    auto before = counts();
    correct_ = before[0], total_ = before[1];
    on_device_ = both;
  }
}

std::vector<double> Accuracy::counts() const {
  if (!on_device_.defined()) return {correct_, total_};
  at::Tensor here = on_device_.cpu();
  return {correct_ + static_cast<double>(here[0].item<std::int64_t>()),
          total_ + static_cast<double>(here[1].item<std::int64_t>())};
}

double Accuracy::compute() const {
  auto totals = peers_.sum(counts());
  if (totals[1] == 0)
    throw MisuseError("Accuracy: there is no sample to judge; call update before compute, on at least one rank");
  return totals[0] / totals[1];
}

double Accuracy::compute_and_reset() {
  double accuracy = compute();
  reset();
  return accuracy;
}

void Accuracy::reset() {
  correct_ = total_ = 0;
  on_device_.reset();
}

Value Accuracy::state_dict() const {
  auto totals = peers_.sum(counts());
  return Value::Map{{"correct", totals[0]}, {"total", totals[1]}};
}

void Accuracy::load_state_dict(const Value& state) {
  bool mine = peers_.rank() == 0;
  double correct = state.at("correct").as_double(), total = state.at("total").as_double();
  reset();
  if (mine) correct_ = correct, total_ = total;
}

}  // namespace fabric

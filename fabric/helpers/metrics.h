#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include <ATen/core/Tensor.h>

#include <fabric/helpers/peers.h>
#include <fabric/plugins/loggers/logger.h>
#include <fabric/state/state.h>

namespace fabric {

/// What tells how many samples of its last batch are there a second time: DataLoader.
template <class Loader>
concept LoaderOfMetrics = requires(const Loader& loader) {
  { loader.repeated_samples() } -> std::convertible_to<std::size_t>;
};

namespace detail {
/// Without the last rows. Throws MisuseError where there are fewer.
FABRIC_API at::Tensor without_repeated(std::size_t repeated, const at::Tensor& rows);
}  // namespace detail

// `Metrics`, a map of names to numbers, is what loggers, EarlyStopping and ModelCheckpoint take; see
// fabric/plugins/loggers/logger.h.

/// The weighted mean of everything that all ranks gave since the last reset. Each value counts as often as its weight
/// says, so that a last batch that is shorter, or a rank that saw fewer batches, does not distort it.
class FABRIC_API MeanMetric : public Stateful {
 public:
  explicit MeanMetric(Peers peers = {}) : peers_(std::move(peers)) {}

  /// One value; give the number of samples behind it as its weight. Throws MisuseError for a weight below 0 or NaN.
  void update(double value, double weight = 1);
  /// Every element of a tensor of any shape, each with this weight. A tensor on another device is not waited for.
  void update(const at::Tensor& values, double weight = 1);
  /// One value for each sample of the batch that `loader` gave last; samples that stand at its end a second time, so
  /// that all ranks have as many, do not count. A value for the whole batch is given a weight instead:
  /// update(value, batch_size - loader.repeated_samples()).
  template <LoaderOfMetrics Loader>
  void update(const Loader& loader, const at::Tensor& values, double weight = 1) {
    update(detail::without_repeated(loader.repeated_samples(), values), weight);
  }
  /// Over all ranks, by one reduction: every rank calls it and gets the same number. NaN when a value was NaN. Throws
  /// MisuseError, on every rank, when no rank gave anything of a weight above 0.
  double compute() const;
  /// compute, then reset.
  double compute_and_reset();
  void reset();

  /// Sum and weight over all ranks, so that every rank must call it, as Fabric::save does.
  Value state_dict() const override;
  void load_state_dict(const Value& state) override;

 private:
  double local_sum() const;
  Peers peers_;
  double sum_ = 0;
  double weight_ = 0;
  at::Tensor sum_on_device_;
};

/// The share of samples whose class was predicted rightly, over all ranks; ranks may have different numbers of samples.
class FABRIC_API Accuracy : public Stateful {
 public:
  explicit Accuracy(Peers peers = {}) : peers_(std::move(peers)) {}

  /// `predictions`: scores of shape [N, C] (or [N, C, ...]), of which the largest counts, or predicted classes,
  /// integers of the shape of `target`. `target`: classes, integers of shape [N] (or [N, ...]); elements equal to
  /// `ignore_index` do not count. Tensors on another device than the CPU are not waited for. Throws MisuseError for
  /// other shapes.
  void update(const at::Tensor& predictions, const at::Tensor& target, std::int64_t ignore_index = -100);
  /// The same without the samples that stand at the end of the loader's last batch a second time.
  template <LoaderOfMetrics Loader>
  void update(const Loader& loader, const at::Tensor& predictions, const at::Tensor& target,
              std::int64_t ignore_index = -100) {
    auto repeated = loader.repeated_samples();
    update(detail::without_repeated(repeated, predictions), detail::without_repeated(repeated, target), ignore_index);
  }
  /// Between 0 and 1, over all ranks by one reduction. Throws MisuseError, on every rank, when no rank had a sample.
  double compute() const;
  double compute_and_reset();
  void reset();

  /// Counts over all ranks, so that every rank must call it, as Fabric::save does.
  Value state_dict() const override;
  void load_state_dict(const Value& state) override;

 private:
  std::vector<double> counts() const;  // right ones and all, of this rank
  Peers peers_;
  double correct_ = 0;
  double total_ = 0;
  at::Tensor on_device_;  // the same two counts, still on the device
};

}  // namespace fabric

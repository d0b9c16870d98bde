// PowerSGD: gradients are sent as two thin matrices.
//
// Source: T. Vogels, S. P. Karimireddy, M. Jaggi, "PowerSGD: Practical Low-Rank Gradient Compression for Distributed
// Optimization" (NeurIPS 2019), algorithm 1. A gradient M (n × m) becomes P Qᵀ of rank r by one step of power
// iteration: P = M Q, averaged and made orthogonal; Q = Mᵀ P, averaged. What is lost is added to the next gradient
// (error feedback).
//
// Invariants:
// - All ranks hold the same Q before a step: they draw it from generators of equal state, or keep it (warm start).
// - Only matrices that shrink by min_compression_rate are compressed; all else is averaged whole and leaves no error.
// - State belongs to a bucket and is dropped when the bucket's shapes change.
// - The two collectives of a bucket run in order on the caller's thread, so that the ranks' orders agree.
#include "strategies/ddp/powersgd_hook.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_qr.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <utility>

#include <fabric/config.h>

namespace fabric::ddp {
namespace {

// A gradient seen as a matrix: the first dimension against all others.
std::int64_t rows(const at::Tensor& gradient) { return gradient.dim() == 0 ? 1 : gradient.size(0); }
std::int64_t columns(const at::Tensor& gradient) { return rows(gradient) == 0 ? 0 : gradient.numel() / rows(gradient); }

void check(const PowerSGDConfig& config) {
  if (config.matrix_approximation_rank < 1)
    throw ConfigError("powersgd: matrix_approximation_rank must be at least 1, given " +
                      std::to_string(config.matrix_approximation_rank));
  if (config.min_compression_rate <= 0) throw ConfigError("powersgd: min_compression_rate must be positive");
  bool keeps_state = config.use_error_feedback || config.warm_start;
  if (config.start_powersgd_iter < 0 || (keeps_state && config.start_powersgd_iter < 2))
    throw ConfigError(
        "powersgd: start_powersgd_iter must be at least 2 with use_error_feedback or warm_start, since "
        "buckets are laid out anew after the first step; given " +
        std::to_string(config.start_powersgd_iter));
}

}  // namespace

PowerSGDHook::PowerSGDHook(const ProcessGroup& group, const PowerSGDConfig& config)
    : group_(group.c10d()),
      average_(group),
      config_(config),
      generator_(at::make_generator<at::CPUGeneratorImpl>(static_cast<std::uint64_t>(config.random_seed))) {
  check(config);
}

// Blocks on CPU backends: the second product needs the first one's sum, and starting collectives in callbacks would put
// them into an order that differs between the ranks. On CUDA only the stream waits.
CommHook::Future PowerSGDHook::run(c10d::GradBucket& bucket) {
  c10::NoGradGuard no_grad;
  bool last = bucket.isLast();
  if (steps_ < config_.start_powersgd_iter) {
    if (last) ++steps_;
    return average_.run(bucket);
  }
  at::Tensor buffer = bucket.getBuffer();
  auto gradients = bucket.getGradients();
  BucketState& state = state_of(bucket, gradients);
  at::Tensor with_error;
  if (config_.use_error_feedback) {
    if (state.error.defined())
      buffer.add_(state.error);
    else
      state.error = at::zeros_like(buffer);
    with_error = buffer.clone();
  }
  std::vector<at::Tensor> rest;
  auto matrices = split(state, gradients, rest);
  average_rest(rest);
  compress(matrices, state);
  // For gradients that were averaged whole nothing is lost, and nothing may be fed back.
  if (config_.use_error_feedback) {
    state.error.zero_();
    for (const auto& matrix : matrices) {
      auto part = [&](const at::Tensor& flat) { return flat.narrow(0, matrix.offset, matrix.gradient.numel()); };
      part(state.error).copy_(part(with_error)).sub_(part(buffer));
    }
  }
  if (!config_.warm_start) state.p = state.q = at::Tensor();
  if (last) ++steps_;
  return completed(buffer);
}

PowerSGDHook::BucketState& PowerSGDHook::state_of(c10d::GradBucket& bucket, const std::vector<at::Tensor>& gradients) {
  BucketState& state = buckets_[bucket.getIndex()];
  std::vector<std::int64_t> shapes;
  for (const auto& gradient : gradients) {
    shapes.push_back(rows(gradient));
    shapes.push_back(columns(gradient));
  }
  if (state.shapes != shapes) state = {.shapes = std::move(shapes)};
  // What a checkpoint gave back lies on the CPU.
  for (at::Tensor* kept : {&state.error, &state.p, &state.q})
    if (kept->defined()) *kept = kept->to(bucket.getBuffer().device(), bucket.getBuffer().scalar_type());
  return state;
}

std::vector<PowerSGDHook::Matrix> PowerSGDHook::split(BucketState& state, const std::vector<at::Tensor>& gradients,
                                                      std::vector<at::Tensor>& rest) {
  std::vector<Matrix> matrices;
  std::int64_t p_size = 0, q_size = 0, offset = 0;
  auto rank_of = [&](std::int64_t n, std::int64_t m) { return std::min({n, m, config_.matrix_approximation_rank}); };
  for (const auto& gradient : gradients) {
    std::int64_t n = rows(gradient), m = columns(gradient), r = rank_of(n, m);
    std::int64_t begin = std::exchange(offset, offset + gradient.numel());
    bool shrinks = gradient.dim() >= 2 &&
                   static_cast<double>((n + m) * r) * config_.min_compression_rate < static_cast<double>(n * m);
    if (!shrinks) {
      rest.push_back(gradient);
      continue;
    }
    matrices.push_back({.gradient = gradient.view({n, m}), .offset = begin});
    p_size += n * r;
    q_size += m * r;
  }
  if (matrices.empty()) return matrices;
  bool fresh = !state.q.defined();
  if (fresh) {
    state.p = at::empty({p_size}, gradients.front().options());
    state.q = at::empty({q_size}, gradients.front().options());
  }
  std::int64_t p_at = 0, q_at = 0;
  for (auto& matrix : matrices) {
    std::int64_t n = matrix.gradient.size(0), m = matrix.gradient.size(1), r = rank_of(n, m);
    matrix.p = state.p.narrow(0, p_at, n * r).view({n, r});
    matrix.q = state.q.narrow(0, q_at, m * r).view({m, r});
    p_at += n * r;
    q_at += m * r;
  }
  start_right_factors(matrices, fresh);
  return matrices;
}

void PowerSGDHook::start_right_factors(std::vector<Matrix>& matrices, bool fresh) {
  for (auto& matrix : matrices) {
    // The generator has the same state on all ranks, so that they start from the same matrix.
    if (fresh) matrix.q.copy_(at::randn(matrix.q.sizes(), generator_, at::kDouble));
    orthogonalize(matrix.q);
  }
}

void PowerSGDHook::compress(std::vector<Matrix>& matrices, BucketState& state) {
  if (matrices.empty()) return;
  for (auto& matrix : matrices) matrix.p.copy_(at::matmul(matrix.gradient, matrix.q));
  // No division: only the directions of P count.
  all_reduce(state.p);
  for (auto& matrix : matrices) orthogonalize(matrix.p);
  for (auto& matrix : matrices) matrix.q.copy_(at::matmul(matrix.gradient.t(), matrix.p));
  state.q.div_(group_->getSize());
  all_reduce(state.q);
  for (auto& matrix : matrices) matrix.gradient.copy_(at::matmul(matrix.p, matrix.q.t()));
}

void PowerSGDHook::average_rest(const std::vector<at::Tensor>& rest) {
  if (rest.empty()) return;
  std::vector<at::Tensor> flat;
  for (const auto& gradient : rest) flat.push_back(gradient.reshape(-1));
  at::Tensor all = at::cat(flat).div_(group_->getSize());
  all_reduce(all);
  std::int64_t offset = 0;
  for (auto& gradient : flat) {
    gradient.copy_(all.narrow(0, offset, gradient.numel()));
    offset += gradient.numel();
  }
}

void PowerSGDHook::all_reduce(at::Tensor tensor) {
  std::vector<at::Tensor> tensors{std::move(tensor)};
  group_->allreduce(tensors)->wait();
}

// Gram-Schmidt, column by column: exact enough for the few columns there are, and defined for half precision.
void PowerSGDHook::orthogonalize(at::Tensor matrix) const {
  bool exact = matrix.scalar_type() == at::kFloat || matrix.scalar_type() == at::kDouble;
  if (exact && config_.orthogonalization_epsilon == 0) {
    matrix.copy_(std::get<0>(at::linalg_qr(matrix)));
    return;
  }
  for (std::int64_t i = 0; i < matrix.size(1); ++i) {
    at::Tensor column = matrix.select(1, i);
    // A column of zeros, where nothing had a gradient, stays what it is instead of becoming not-a-number.
    column.div_(column.norm().add_(config_.orthogonalization_epsilon).clamp_min_(1e-7));
    for (std::int64_t j = i + 1; j < matrix.size(1); ++j) {
      at::Tensor next = matrix.select(1, j);
      next.sub_(column.mul(column.dot(next)));
    }
  }
}

Value PowerSGDHook::state_dict() const {
  Value::Map buckets;
  for (const auto& [index, state] : buckets_) {
    Value::List shapes(state.shapes.begin(), state.shapes.end());
    Value::Map entry{{"shapes", std::move(shapes)}};
    if (state.error.defined()) entry["error"] = state.error;
    if (state.q.defined()) entry["p"] = state.p, entry["q"] = state.q;
    buckets[std::to_string(index)] = std::move(entry);
  }
  return Value::Map{{"steps", steps_}, {"buckets", std::move(buckets)}};
}

void PowerSGDHook::load_state_dict(const Value& state) {
  steps_ = state.at("steps").as_int();
  buckets_.clear();
  for (const auto& [index, entry] : state.at("buckets").as_map()) {
    BucketState& bucket = buckets_[std::stoul(index)];
    for (const auto& size : entry.at("shapes").as_list()) bucket.shapes.push_back(size.as_int());
    auto tensor = [&](const char* key) {
      const Value* found = entry.find(key);
      return found ? found->as<at::Tensor>().clone() : at::Tensor();
    };
    bucket.error = tensor("error");
    bucket.p = tensor("p");
    bucket.q = tensor("q");
  }
}

std::shared_ptr<CommHook> make_powersgd(const ProcessGroup& group, const Tree& params) {
  return std::make_shared<PowerSGDHook>(group, from_tree<PowerSGDConfig>(params));
}

}  // namespace fabric::ddp

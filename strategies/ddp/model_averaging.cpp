#include <fabric/strategies/model_averaging.h>

#include <ATen/ops/cat.h>
#include <c10/core/GradMode.h>

#include <utility>

namespace fabric {
namespace {

// Bounds the copy that coalescing makes.
constexpr std::int64_t kChunkBytes = 64 << 20;

void average_chunk(const std::vector<at::Tensor>& chunk, const ProcessGroup& group) {
  std::vector<at::Tensor> flat;
  flat.reserve(chunk.size());
  for (const auto& tensor : chunk) flat.push_back(tensor.reshape(-1));
  at::Tensor all = at::cat(flat);
  group.all_reduce_(all, ReduceOp::mean);
  std::int64_t offset = 0;
  for (const auto& tensor : chunk) {
    tensor.detach().copy_(all.narrow(0, offset, tensor.numel()).view(tensor.sizes()));
    offset += tensor.numel();
  }
}

}  // namespace

void average_parameters(const std::vector<at::Tensor>& parameters, const ProcessGroup& group) {
  if (group.size() == 1) return;
  c10::NoGradGuard no_grad;
  std::vector<at::Tensor> chunk;
  std::int64_t bytes = 0;
  auto flush = [&] {
    if (!chunk.empty()) average_chunk(chunk, group);
    chunk.clear();
    bytes = 0;
  };
  for (const auto& parameter : parameters) {
    if (!parameter.defined() || parameter.numel() == 0) continue;
    bool fits = chunk.empty() || (chunk.front().scalar_type() == parameter.scalar_type() &&
                                  chunk.front().device() == parameter.device() && bytes < kChunkBytes);
    if (!fits) flush();
    chunk.push_back(parameter);
    bytes += static_cast<std::int64_t>(parameter.nbytes());
  }
  flush();
}

ModelAverager::ModelAverager(ProcessGroup group, const Config& config) : group_(std::move(group)), config_(config) {
  if (config.period < 1)
    throw ConfigError("model averaging needs a period of at least 1 step, given " + std::to_string(config.period));
  if (config.warmup_steps < 0)
    throw ConfigError("model averaging: warmup_steps must not be negative, given " +
                      std::to_string(config.warmup_steps));
}

bool ModelAverager::step(const std::vector<at::Tensor>& parameters) {
  std::int64_t since_warmup = ++steps_ - config_.warmup_steps;
  if (since_warmup <= 0 || since_warmup % config_.period != 0) return false;
  average_parameters(parameters, group_);
  return true;
}

}  // namespace fabric

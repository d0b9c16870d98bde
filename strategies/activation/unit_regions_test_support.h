#pragma once

#include <fabric/strategies/activation_checkpointing.h>

#include <torch/torch.h>

#include <string>
#include <vector>

namespace regions_test {

using fabric::ActivationCheckpointing;
using Config = ActivationCheckpointing::Config;

// A block of a transformer with dropout, whose class knows nothing of checkpointing.
struct BlockImpl : torch::nn::Module {
  explicit BlockImpl(int64_t width) {
    norm1 = register_module("norm1", torch::nn::LayerNorm(torch::nn::LayerNormOptions({width})));
    norm2 = register_module("norm2", torch::nn::LayerNorm(torch::nn::LayerNormOptions({width})));
    qkv = register_module("qkv", torch::nn::Linear(width, 3 * width));
    proj = register_module("proj", torch::nn::Linear(torch::nn::LinearOptions(width, width).bias(false)));
    up = register_module("up", torch::nn::Linear(torch::nn::LinearOptions(width, 2 * width).bias(false)));
    down = register_module("down", torch::nn::Linear(2 * width, width));
    drop = register_module("drop", torch::nn::Dropout(0.25));
  }
  at::Tensor forward(at::Tensor x) {
    auto parts = qkv(norm1(x)).chunk(3, -1);
    auto mask = torch::empty({x.size(1), x.size(1)}, torch::kFloat);  // filled without an operator
    for (int64_t i = 0; i < mask.size(0); ++i)
      for (int64_t j = 0; j < mask.size(1); ++j) mask.accessor<float, 2>()[i][j] = j > i ? -1e4F : 0.0F;
    auto mixed = torch::softmax(torch::matmul(parts[0], parts[1].transpose(1, 2)) + mask.to(x.scalar_type()), -1)
                     .matmul(parts[2]);
    x = x + drop(proj(mixed));
    return x + drop(down(torch::gelu(up(norm2(x)))));
  }
  torch::nn::LayerNorm norm1{nullptr}, norm2{nullptr};
  torch::nn::Linear qkv{nullptr}, proj{nullptr}, up{nullptr}, down{nullptr};
  torch::nn::Dropout drop{nullptr};
};
TORCH_MODULE(Block);

struct TextImpl : torch::nn::Module {
  explicit TextImpl(int64_t width = 16, int64_t layers = 3) {
    tokens = register_module("tokens", torch::nn::Embedding(11, width));
    blocks = register_module("blocks", torch::nn::ModuleList());
    for (int64_t i = 0; i < layers; ++i) blocks->push_back(Block(width));
    norm = register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({width})));
    head = register_module("head", torch::nn::Linear(width, 11));
  }
  at::Tensor forward(const at::Tensor& ids) {
    auto x = tokens(ids);
    for (const auto& block : *blocks) x = block->as<Block>()->forward(x);
    return head(norm(x));
  }
  torch::nn::Embedding tokens{nullptr};
  torch::nn::ModuleList blocks{nullptr};
  torch::nn::LayerNorm norm{nullptr};
  torch::nn::Linear head{nullptr};
};
TORCH_MODULE(Text);

inline at::Tensor ids_of(int step, int rank = 0) {
  torch::manual_seed(1000 + 10 * step + rank);
  return torch::randint(0, 11, {4, 7});
}
inline at::Tensor loss_of(const at::Tensor& logits, const at::Tensor& ids) {
  return torch::nn::functional::cross_entropy(logits.flatten(0, 1), ids.flatten());
}

}  // namespace regions_test

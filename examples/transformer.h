#pragma once
// A small causal transformer over characters, in plain LibTorch; shared by the example and the benchmarks.

#include <torch/torch.h>

#include <fabric/config.h>

struct TransformerConfig {
  int64_t vocabulary = 128;
  int64_t width = 256;
  int64_t heads = 4;
  int64_t layers = 4;
  int64_t context = 64;
  FABRIC_FIELDS(TransformerConfig, vocabulary, width, heads, layers, context)
};

struct BlockImpl : torch::nn::Module {
  explicit BlockImpl(const TransformerConfig& config) : heads(config.heads) {
    auto d = config.width;
    norm1 = register_module("norm1", torch::nn::LayerNorm(torch::nn::LayerNormOptions({d})));
    norm2 = register_module("norm2", torch::nn::LayerNorm(torch::nn::LayerNormOptions({d})));
    qkv = register_module("qkv", torch::nn::Linear(d, 3 * d));
    proj = register_module("proj", torch::nn::Linear(d, d));
    up = register_module("up", torch::nn::Linear(d, 4 * d));
    down = register_module("down", torch::nn::Linear(4 * d, d));
  }
  torch::Tensor forward(torch::Tensor x) {
    auto b = x.size(0), t = x.size(1), d = x.size(2);
    auto parts = qkv(norm1(x)).view({b, t, 3, heads, d / heads}).permute({2, 0, 3, 1, 4});
    auto mixed = torch::scaled_dot_product_attention(parts[0], parts[1], parts[2], {}, 0.0, /*is_causal=*/true);
    x = x + proj(mixed.transpose(1, 2).reshape({b, t, d}));
    return x + down(torch::gelu(up(norm2(x))));
  }
  int64_t heads;
  torch::nn::LayerNorm norm1{nullptr}, norm2{nullptr};
  torch::nn::Linear qkv{nullptr}, proj{nullptr}, up{nullptr}, down{nullptr};
};
TORCH_MODULE(Block);

struct TransformerImpl : torch::nn::Module {
  explicit TransformerImpl(const TransformerConfig& config) {
    tokens = register_module("tokens", torch::nn::Embedding(config.vocabulary, config.width));
    positions = register_module("positions", torch::nn::Embedding(config.context, config.width));
    blocks = register_module("blocks", torch::nn::ModuleList());
    for (int64_t i = 0; i < config.layers; ++i) blocks->push_back(Block(config));
    norm = register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({config.width})));
    head = register_module("head", torch::nn::Linear(config.width, config.vocabulary));
  }
  /// (batch, time) integer codes → (batch, time, vocabulary) logits.
  torch::Tensor forward(torch::Tensor codes) {
    auto x = tokens(codes) + positions(torch::arange(codes.size(1), codes.device()));
    for (auto& block : *blocks) x = block->as<Block>()->forward(x);
    return head(norm(x));
  }
  torch::nn::Embedding tokens{nullptr}, positions{nullptr};
  torch::nn::ModuleList blocks{nullptr};
  torch::nn::LayerNorm norm{nullptr};
  torch::nn::Linear head{nullptr};
};
TORCH_MODULE(Transformer);

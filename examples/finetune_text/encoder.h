#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <filesystem>
#include <vector>

// A BERT encoder that turns sentences into vectors. Modules are named as in the weight files of Python's
// `transformers`, so that those load without a table of names.

struct EncoderOptions {
  std::int64_t vocabulary = 30522;
  std::int64_t positions = 512;
  std::int64_t hidden = 384;
  std::int64_t heads = 12;
  std::int64_t layers = 6;
  std::int64_t intermediate = 1536;
  double dropout = 0.1;  // of hidden states and of attention weights
};

struct EmbeddingsImpl : torch::nn::Module {
  explicit EmbeddingsImpl(const EncoderOptions& options);
  torch::Tensor forward(const torch::Tensor& ids);

 private:
  torch::nn::Embedding words_{nullptr}, positions_{nullptr}, types_{nullptr};
  torch::nn::LayerNorm norm_{nullptr};
  torch::nn::Dropout dropout_{nullptr};
};
TORCH_MODULE(Embeddings);

/// A linear layer whose result is added to what the block was given, then normalised.
struct ResidualImpl : torch::nn::Module {
  ResidualImpl(std::int64_t in, std::int64_t out, double dropout);
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& given);

 private:
  torch::nn::Linear dense_{nullptr};
  torch::nn::LayerNorm norm_{nullptr};
  torch::nn::Dropout dropout_{nullptr};
};
TORCH_MODULE(Residual);

struct SelfAttentionImpl : torch::nn::Module {
  explicit SelfAttentionImpl(const EncoderOptions& options);
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& mask);

 private:
  torch::Tensor split(const torch::Tensor& x) const;
  std::int64_t heads_;
  double dropout_;
  torch::nn::Linear query_{nullptr}, key_{nullptr}, value_{nullptr};
};
TORCH_MODULE(SelfAttention);

struct EncoderLayerImpl : torch::nn::Module {
  explicit EncoderLayerImpl(const EncoderOptions& options);
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& mask);

 private:
  SelfAttention attend_{nullptr};
  Residual attended_{nullptr}, output_{nullptr};
  torch::nn::Linear widen_{nullptr};
};
TORCH_MODULE(EncoderLayer);

struct SentenceEncoderImpl : torch::nn::Module {
  explicit SentenceEncoderImpl(const EncoderOptions& options = {});
  /// ids [batch, tokens] int64 and mask [batch, tokens] bool, true where there is a token -> [batch, hidden]: the mean
  /// over a sentence's tokens, of length 1.
  torch::Tensor forward(const torch::Tensor& ids, const torch::Tensor& mask);
  /// Reads a safetensors file as `transformers` writes it. Every weight of the encoder must be there; the pooler's,
  /// which sentence vectors do without, are left out.
  void load(const std::filesystem::path& path);
  /// As Module's, but parts whose parameters are all frozen stay without dropout: they give what they always gave.
  void train(bool on = true) override;

  const EncoderOptions options;

 private:
  Embeddings embeddings_{nullptr};
  torch::nn::ModuleList layers_{nullptr};
};
TORCH_MODULE(SentenceEncoder);

/// A batch of token lists: padded to the longest.
struct TokenBatch {
  torch::Tensor ids, mask;
  static TokenBatch pad(const std::vector<std::vector<std::int64_t>>& sentences, std::int64_t pad_id = 0);
};

#include "encoder.h"

#include <fabric/plugins/checkpoint_io/checkpoint_io.h>
#include <fabric/state/state.h>

#include <algorithm>
#include <string>

namespace {

torch::nn::LayerNorm layer_norm(std::int64_t size) {
  return torch::nn::LayerNorm(torch::nn::LayerNormOptions({size}).eps(1e-12));
}

// A module that only groups others under a name.
std::shared_ptr<torch::nn::Module> group(torch::nn::Module& parent, const std::string& name) {
  return parent.register_module(name, std::make_shared<torch::nn::Module>());
}

}  // namespace

EmbeddingsImpl::EmbeddingsImpl(const EncoderOptions& o)
    : words_(register_module("word_embeddings", torch::nn::Embedding(o.vocabulary, o.hidden))),
      positions_(register_module("position_embeddings", torch::nn::Embedding(o.positions, o.hidden))),
      types_(register_module("token_type_embeddings", torch::nn::Embedding(2, o.hidden))),
      norm_(register_module("LayerNorm", layer_norm(o.hidden))),
      dropout_(register_module("dropout", torch::nn::Dropout(o.dropout))) {}

torch::Tensor EmbeddingsImpl::forward(const torch::Tensor& ids) {
  auto places = torch::arange(ids.size(1), ids.options());
  // All tokens are of type 0: there is one sentence.
  auto x = words_(ids) + types_(torch::zeros({1}, ids.options())) + positions_(places);
  return dropout_(norm_(x));
}

ResidualImpl::ResidualImpl(std::int64_t in, std::int64_t out, double dropout)
    : dense_(register_module("dense", torch::nn::Linear(in, out))),
      norm_(register_module("LayerNorm", layer_norm(out))),
      dropout_(register_module("dropout", torch::nn::Dropout(dropout))) {}

torch::Tensor ResidualImpl::forward(const torch::Tensor& x, const torch::Tensor& given) {
  return norm_(given + dropout_(dense_(x)));
}

SelfAttentionImpl::SelfAttentionImpl(const EncoderOptions& o)
    : heads_(o.heads),
      dropout_(o.dropout),
      query_(register_module("query", torch::nn::Linear(o.hidden, o.hidden))),
      key_(register_module("key", torch::nn::Linear(o.hidden, o.hidden))),
      value_(register_module("value", torch::nn::Linear(o.hidden, o.hidden))) {}

torch::Tensor SelfAttentionImpl::split(const torch::Tensor& x) const {
  return x.unflatten(-1, {heads_, -1}).transpose(1, 2);  // [batch, heads, tokens, hidden / heads]
}

torch::Tensor SelfAttentionImpl::forward(const torch::Tensor& x, const torch::Tensor& mask) {
  auto attended = at::scaled_dot_product_attention(split(query_(x)), split(key_(x)), split(value_(x)), mask,
                                                   is_training() ? dropout_ : 0.0);
  return attended.transpose(1, 2).flatten(2);
}

EncoderLayerImpl::EncoderLayerImpl(const EncoderOptions& o) {
  auto attention = group(*this, "attention");
  attend_ = attention->register_module("self", SelfAttention(o));
  attended_ = attention->register_module("output", Residual(o.hidden, o.hidden, o.dropout));
  widen_ = group(*this, "intermediate")->register_module("dense", torch::nn::Linear(o.hidden, o.intermediate));
  output_ = register_module("output", Residual(o.intermediate, o.hidden, o.dropout));
}

torch::Tensor EncoderLayerImpl::forward(const torch::Tensor& x, const torch::Tensor& mask) {
  auto attended = attended_(attend_(x, mask), x);
  return output_(torch::gelu(widen_(attended)), attended);
}

SentenceEncoderImpl::SentenceEncoderImpl(const EncoderOptions& o)
    : options(o), embeddings_(register_module("embeddings", Embeddings(o))) {
  layers_ = group(*this, "encoder")->register_module("layer", torch::nn::ModuleList());
  for (std::int64_t i = 0; i < o.layers; ++i) layers_->push_back(EncoderLayer(o));
}

torch::Tensor SentenceEncoderImpl::forward(const torch::Tensor& ids, const torch::Tensor& mask) {
  auto x = embeddings_(ids);
  auto seen = mask.unsqueeze(1).unsqueeze(1);  // [batch, 1, 1, tokens]: every token sees the sentence, not the padding
  for (const auto& layer : *layers_) x = layer->as<EncoderLayer>()->forward(x, seen);
  auto weights = mask.unsqueeze(-1).to(x.scalar_type());
  auto mean = (x * weights).sum(1) / weights.sum(1).clamp_min(1e-9);
  return torch::nn::functional::normalize(mean);
}

void SentenceEncoderImpl::train(bool on) {
  Module::train(on);
  auto settle = [on](torch::nn::Module& part) {
    auto parameters = part.parameters();
    part.train(on && std::any_of(parameters.begin(), parameters.end(), [](auto& p) { return p.requires_grad(); }));
  };
  settle(*embeddings_);
  for (const auto& layer : *layers_) settle(*layer);
}

void SentenceEncoderImpl::load(const std::filesystem::path& path) {
  fabric::Value file = fabric::make_checkpoint_io()->load(path);
  fabric::Value::Map weights;
  for (const auto& [name, value] : file.as_map())
    if (!name.starts_with("pooler.") && name != "embeddings.position_ids") weights.append(name, value);
  fabric::load_module_state_dict(*this, weights);
}

TokenBatch TokenBatch::pad(const std::vector<std::vector<std::int64_t>>& sentences, std::int64_t pad_id) {
  std::size_t longest = 0;
  for (const auto& sentence : sentences) longest = std::max(longest, sentence.size());
  std::vector<std::int64_t> sizes{static_cast<std::int64_t>(sentences.size()), static_cast<std::int64_t>(longest)};
  TokenBatch batch{torch::full(sizes, pad_id, torch::kLong), torch::zeros(sizes, torch::kBool)};
  for (std::size_t i = 0; i < sentences.size(); ++i) {
    auto row = static_cast<std::int64_t>(i), length = static_cast<std::int64_t>(sentences[i].size());
    batch.ids[row].slice(0, 0, length) = torch::tensor(sentences[i]);
    batch.mask[row].slice(0, 0, length) = true;
  }
  return batch;
}

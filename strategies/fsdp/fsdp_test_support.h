#pragma once

#include <fabric/fabric.h>
#include <fabric/strategies/fsdp.h>
#include <fabric/strategies/summon.h>

#include <torch/torch.h>

#include <filesystem>
#include <string>
#include <vector>

#include "tests/support/ranks.h"

namespace fsdp_test {

using fabric::Choice;
using fabric::Fabric;
using fabric::Value;

struct BlockImpl : torch::nn::Module {
  explicit BlockImpl(int width) {
    norm = register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({width})));
    up = register_module("up", torch::nn::Linear(width, width + 2));
    down = register_module("down", torch::nn::Linear(width + 2, width));
  }
  at::Tensor forward(const at::Tensor& x) { return x + down(torch::tanh(up(norm(x)))); }
  torch::nn::LayerNorm norm{nullptr};
  torch::nn::Linear up{nullptr}, down{nullptr};
};
TORCH_MODULE(Block);

// Odd numbers of rows, fewer rows than ranks, no dimension, a tied and an unused parameter, a buffer.
struct TextImpl : torch::nn::Module {
  explicit TextImpl(int width = 5) {
    wte = register_module("wte", torch::nn::Embedding(11, width));
    blocks = register_module("blocks", torch::nn::ModuleList());
    for (int i = 0; i < 3; ++i) blocks->push_back(Block(width));
    lm_head = register_module("lm_head", torch::nn::Linear(torch::nn::LinearOptions(width, 11).bias(false)));
    single = register_parameter("single", torch::ones({1, width}));
    scale = register_parameter("scale", torch::ones({}));
    unused = register_parameter("unused", torch::ones({3}));
    offset = register_buffer("offset", torch::zeros({width}));
  }
  at::Tensor forward(const at::Tensor& ids) {
    auto x = wte(ids) * single + offset;
    for (const auto& block : *blocks) x = block->as<Block>()->forward(x);
    return lm_head(x * scale);
  }
  torch::nn::Embedding wte{nullptr};
  torch::nn::ModuleList blocks{nullptr};
  torch::nn::Linear lm_head{nullptr};
  at::Tensor single, scale, unused, offset;
};
TORCH_MODULE(Text);

inline Text make_text(int width = 5, at::ScalarType type = at::kDouble) {
  torch::manual_seed(5);
  Text net(width);
  net->to(type);
  fabric::tie(net, "lm_head.weight", "wte.weight");
  return net;
}

inline at::Tensor batch(int step, int part, int rank, int world) {
  torch::manual_seed(100 * step + part);
  return torch::randint(0, 11, {12, 4}).slice(0, rank, 12, world).contiguous();
}
inline at::Tensor loss_of(const at::Tensor& logits, const at::Tensor& ids) {
  return torch::nn::functional::cross_entropy(logits.flatten(0, 1), ids.flatten());
}

inline const auto adamw = [](auto parameters) { return torch::optim::AdamW(parameters, 0.05); };

// Some steps, on this rank's part of each batch.
struct Training {
  int parts = 2;  // backward passes per step
  bool accumulate_locally = false;
  std::optional<double> max_norm = 0.5, clip_val = {};

  template <class Model, class Optimizer>
  std::vector<double> run(Fabric& fabric, Model& model, Optimizer& optimizer, int first, int last) const {
    std::vector<double> norms;
    for (int step = first; step < last; ++step) {
      optimizer.zero_grad();
      for (int part = 0; part < parts; ++part) {
        auto local = fabric.no_backward_sync(model, accumulate_locally && part + 1 < parts);
        auto ids = batch(step, part, fabric.global_rank(), fabric.world_size());
        fabric.backward(loss_of(model(ids), ids) / parts);
      }
      if (clip_val) fabric.clip_gradients(model, optimizer, {.clip_val = clip_val});
      if (max_norm)
        norms.push_back(fabric.clip_gradients(model, optimizer, {.max_norm = max_norm}).template item<double>());
      optimizer.step();
    }
    return norms;
  }
};

struct Whole {
  std::vector<at::Tensor> parameters;
  std::vector<double> norms;
};

// What one process comes to on the joined batches. Precision 64-true would have the loss in 32 bits: the model itself
// is in 64 where that is compared.
inline Whole alone(int steps, const Training& training = {}, const std::string& precision = "32-true",
                   at::ScalarType type = at::kDouble, int width = 5) {
  Fabric fabric({.accelerator = "cpu", .strategy = "single_device", .precision = precision});
  auto raw = make_text(width, type);
  auto [model, optimizer] = fabric.setup(raw, adamw);
  Whole out;
  out.norms = training.run(fabric, model, optimizer, 0, steps);
  for (auto& parameter : raw->parameters()) out.parameters.push_back(parameter.detach().clone());
  return out;
}

inline Fabric::Config settings(int ranks, const fabric::Tree::Map& params = {},
                               const std::string& precision = "32-true", const std::string& io = "safetensors") {
  return {.accelerator = "cpu",
          .strategy = Choice("fsdp", params),
          .devices = ranks,
          .precision = precision,
          .checkpoint_io = io};
}

template <class Model>
double difference(const Model& model, const std::vector<at::Tensor>& expected) {
  auto whole = fabric::summon(model);
  auto parameters = model->parameters();
  double most = 0;
  for (std::size_t i = 0; i < parameters.size(); ++i)
    most = std::max(most, (parameters[i].detach() - expected[i]).abs().max().template item<double>());
  return most;
}

template <class Function>
std::string error_of(Function&& function) {
  try {
    function();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}
inline bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace fsdp_test

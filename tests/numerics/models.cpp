#include "tests/numerics/models.h"

#include <zlib.h>

#include <fstream>
#include <stdexcept>

#include <fabric/base/tree_io.h>

#include "examples/finetune_text/classifier.h"
#include "examples/transformer.h"

namespace numerics {
namespace {

struct DigitsImpl : Model {
  DigitsImpl() {
    batch = 32, rate = 0.05;
    conv1 = register_module("conv1", torch::nn::Conv2d(torch::nn::Conv2dOptions(1, 16, 3).padding(1)));
    conv2 = register_module("conv2", torch::nn::Conv2d(torch::nn::Conv2dOptions(16, 32, 3).padding(1)));
    fc1 = register_module("fc1", torch::nn::Linear(32 * 4 * 4, 64));
    fc2 = register_module("fc2", torch::nn::Linear(64, 10));
    read(FABRIC_EXAMPLES "/data/digits.csv.gz");
  }
  torch::Tensor forward(const std::vector<torch::Tensor>& inputs) override {
    auto x = torch::relu(conv1(inputs[0]));
    x = torch::max_pool2d(torch::relu(conv2(x)), 2);
    return fc2(torch::relu(fc1(x.flatten(1))));
  }
  Batch rows(const std::vector<std::int64_t>& indices) const override {
    auto at = torch::tensor(indices);
    return {{images.index_select(0, at)}, labels.index_select(0, at)};
  }
  std::int64_t size() const override { return labels.size(0); }

  void read(const std::string& path) {
    gzFile file = gzopen(path.c_str(), "rb");
    if (!file) throw std::runtime_error("cannot read " + path);
    std::vector<float> pixels;
    std::vector<std::int64_t> digits;
    char line[512];
    while (gzgets(file, line, sizeof line)) {
      char* at = line;
      for (int i = 0; i < 64; ++i) pixels.push_back(std::strtof(at, &at) / 16), ++at;
      digits.push_back(std::strtol(at, &at, 10));
    }
    gzclose(file);
    images = torch::tensor(pixels).view({-1, 1, 8, 8});
    labels = torch::tensor(digits);
  }
  torch::nn::Conv2d conv1{nullptr}, conv2{nullptr};
  torch::nn::Linear fc1{nullptr}, fc2{nullptr};
  torch::Tensor images, labels;
};

struct CharactersImpl : Model {
  CharactersImpl() {
    batch = 8, rate = 0.1, max_norm = 1;
    net = register_module("net", Transformer(config));
    std::ifstream file(FABRIC_EXAMPLES "/data/genesis.txt", std::ios::binary);
    if (!file) throw std::runtime_error("cannot read " FABRIC_EXAMPLES "/data/genesis.txt");
    std::vector<std::int64_t> read;
    for (char c; file.get(c);) read.push_back(static_cast<unsigned char>(c) & 127);
    codes = torch::tensor(read);
  }
  torch::Tensor forward(const std::vector<torch::Tensor>& inputs) override { return net(inputs[0]).flatten(0, 1); }
  Batch rows(const std::vector<std::int64_t>& indices) const override {
    std::vector<torch::Tensor> text, next;
    for (auto index : indices) {
      text.push_back(codes.narrow(0, index * config.context, config.context));
      next.push_back(codes.narrow(0, index * config.context + 1, config.context));
    }
    return {{torch::stack(text)}, torch::cat(next)};
  }
  std::int64_t size() const override { return (codes.size(0) - 1) / config.context; }

  TransformerConfig config{.vocabulary = 128, .width = 64, .heads = 4, .layers = 2, .context = 32};
  Transformer net{nullptr};
  torch::Tensor codes;
};

// The small sentence encoder of the parity test with a new head; its embeddings are frozen.
struct EncoderImpl : Model {
  EncoderImpl() {
    batch = 8, rate = 0.5;
    const auto record = fabric::read_tree_file(FABRIC_PARITY_DATA "/finetune_text/small.json");
    const std::int64_t hidden = record.at("hidden_size").as_int();
    net = register_module("net", Classifier(EncoderOptions{.vocabulary = record.at("vocab_size").as_int(),
                                                           .positions = record.at("max_position_embeddings").as_int(),
                                                           .hidden = hidden,
                                                           .heads = record.at("num_attention_heads").as_int(),
                                                           .layers = record.at("num_hidden_layers").as_int(),
                                                           .intermediate = record.at("intermediate_size").as_int(),
                                                           .dropout = 0}));
    net->bert->load(FABRIC_PARITY_DATA "/finetune_text/small.safetensors");
    {
      torch::NoGradGuard no_grad;
      net->head->weight.copy_(torch::arange(2.0 * static_cast<double>(hidden), torch::kFloat).view({2, hidden}).cos() *
                              0.5);
      net->head->bias.zero_();
    }
    for (auto& parameter : net->bert->named_children()["embeddings"]->parameters()) parameter.requires_grad_(false);
    for (const auto& sentence : record.at("sentences").as_list()) {
      auto& ids = sentences.emplace_back();
      for (const auto& id : sentence.at("ids").as_list()) ids.push_back(id.as_int());
    }
  }
  torch::Tensor forward(const std::vector<torch::Tensor>& inputs) override { return net(inputs[0], inputs[1]); }
  Batch rows(const std::vector<std::int64_t>& indices) const override {
    std::vector<std::vector<std::int64_t>> chosen;
    std::vector<std::int64_t> labels;
    for (auto index : indices) {
      chosen.push_back(sentences[static_cast<std::size_t>(index)]);
      labels.push_back(index % 2);
    }
    auto padded = TokenBatch::pad(chosen);
    return {{padded.ids, padded.mask}, torch::tensor(labels)};
  }
  std::int64_t size() const override { return static_cast<std::int64_t>(sentences.size()); }

  Classifier net{nullptr};
  std::vector<std::vector<std::int64_t>> sentences;
};

}  // namespace

const std::vector<std::string>& model_names() {
  static const std::vector<std::string> names = {"digits", "transformer", "encoder"};
  return names;
}

std::shared_ptr<torch::nn::Module> Model::clone(const std::optional<torch::Device>& device) const {
  torch::NoGradGuard no_grad;
  auto copy = make_model(made_as);
  copy->train(is_training());
  auto mine = parameters(), theirs = copy->parameters();
  for (std::size_t i = 0; i < mine.size(); ++i) {
    theirs[i].set_data(mine[i].detach().clone());
    theirs[i].requires_grad_(mine[i].requires_grad());
  }
  auto from = buffers(), to = copy->buffers();
  for (std::size_t i = 0; i < from.size(); ++i) to[i].set_data(from[i].detach().clone());
  if (device) copy->to(*device);
  return copy;
}

std::shared_ptr<Model> make_model(const std::string& name) {
  torch::manual_seed(7);
  std::shared_ptr<Model> made;
  if (name == "digits") made = std::make_shared<DigitsImpl>();
  if (name == "transformer") made = std::make_shared<CharactersImpl>();
  if (name == "encoder") made = std::make_shared<EncoderImpl>();
  if (!made) throw std::runtime_error("there is no model '" + name + "'");
  made->made_as = name;
  return made;
}

}  // namespace numerics

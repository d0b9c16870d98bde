#include "classifier.h"

#include <fabric/base/tree_io.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

std::int64_t trained_numbers(const torch::nn::Module& module) {
  std::int64_t numbers = 0;
  for (const auto& parameter : module.parameters())
    if (parameter.requires_grad()) numbers += parameter.numel();
  return numbers;
}

double difference_to_python(SentenceEncoder& encoder, const WordPiece& tokenizer,
                            const std::filesystem::path& reference) {
  fabric::Tree record = fabric::read_tree_file(reference.string());
  std::vector<std::vector<std::int64_t>> sentences;
  std::vector<float> expected;
  for (const auto& entry : record.at("sentences").as_list()) {
    const std::string& text = entry.at("text").as_string();
    auto ids = tokenizer.encode(text);
    const auto& recorded = entry.at("ids").as_list();
    if (!std::equal(ids.begin(), ids.end(), recorded.begin(), recorded.end(),
                    [](std::int64_t id, const fabric::Tree& other) { return id == other.as_int(); }))
      throw std::runtime_error("the tokenizer does not give Python's ids for: " + text);
    sentences.push_back(std::move(ids));
    for (const auto& number : entry.at("vector").as_list()) expected.push_back(static_cast<float>(number.as_double()));
  }
  torch::NoGradGuard no_grad;
  bool trained = encoder->is_training();
  encoder->eval();
  auto [ids, mask] = TokenBatch::pad(sentences, tokenizer.pad_id());
  auto vectors = encoder->forward(ids, mask);
  encoder->train(trained);
  return (vectors - torch::tensor(expected).view_as(vectors)).abs().max().item<double>();
}

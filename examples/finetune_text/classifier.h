#pragma once

#include <cstdint>
#include <filesystem>

#include "encoder.h"
#include "wordpiece.h"

/// A sentence encoder and a new linear layer on its vectors: two scores per sentence, negative and positive.
struct ClassifierImpl : torch::nn::Module {
  explicit ClassifierImpl(const EncoderOptions& options = {})
      : bert(register_module("bert", SentenceEncoder(options))),
        head(register_module("head", torch::nn::Linear(options.hidden, 2))) {}
  torch::Tensor forward(const torch::Tensor& ids, const torch::Tensor& mask) { return head(bert(ids, mask)); }

  SentenceEncoder bert{nullptr};
  torch::nn::Linear head{nullptr};
};
TORCH_MODULE(Classifier);

/// How many numbers a module trains.
std::int64_t trained_numbers(const torch::nn::Module& module);

/// The largest difference between the encoder's vectors and those that Python recorded in `reference`, a JSON file of
/// tests/parity/finetune_text/record_finetune_text.py. Throws std::runtime_error when the tokenizer gives other ids.
double difference_to_python(SentenceEncoder& encoder, const WordPiece& tokenizer,
                            const std::filesystem::path& reference);

#pragma once

#include <fabric/fabric.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "wordpiece.h"

/// One snippet of a film review: its tokens and whether people rated it positive.
struct Review {
  std::vector<std::int64_t> tokens;
  bool positive;
};

/// ids [batch, tokens] padded to the longest, mask of the same shape, labels [batch]: 1 positive, 0 negative.
struct ReviewBatch {
  torch::Tensor ids, mask, labels;
  FABRIC_TENSORS(ReviewBatch, ids, mask, labels)
};

enum class Split { train, validation, test };

/// The rated snippets of movieReviewSnippets_GroundTruth.txt: id, mean rating from -4 to 4 and text, separated by tabs.
/// The last digit of the id decides: 8 is for validation, 9 for testing, the rest for training. The rating's sign is
/// the label; the 37 snippets whose rating is 0 have none and are left out.
class Reviews {
 public:
  /// Throws std::runtime_error when the file cannot be read, naming the line where it is not as described.
  Reviews(const std::filesystem::path& file, const WordPiece& tokenizer, Split split);

  const Review& get(std::size_t index) const { return reviews_.at(index); }
  std::size_t size() const { return reviews_.size(); }
  /// How a loader makes a batch out of samples.
  ReviewBatch collate(std::vector<Review> reviews) const;
  /// Tokens of each snippet.
  std::vector<std::size_t> lengths() const;

 private:
  std::vector<Review> reviews_;
  std::int64_t pad_id_;
};

/// Batches of snippets of similar length, so that little is padded. Which snippets share a batch and the order of the
/// batches change with each epoch. The order is the same on all ranks, and so, nearly, are the lengths: no rank waits
/// long for another.
class LengthBatches : public fabric::BatchSampler {
 public:
  LengthBatches(std::shared_ptr<fabric::IndexSampler> sampler, std::size_t batch_size,
                std::vector<std::size_t> lengths);
  void reset() override;
  bool next(std::vector<std::size_t>& batch) override;
  std::optional<std::size_t> size() const override;
  void set_epoch(std::int64_t epoch) override { epoch_ = epoch; }

 private:
  std::shared_ptr<fabric::IndexSampler> sampler_;
  std::size_t batch_size_;
  std::vector<std::size_t> lengths_;
  std::int64_t epoch_ = 0;
  std::vector<std::vector<std::size_t>> batches_;
  std::size_t cursor_ = 0;
};

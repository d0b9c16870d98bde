#include "reviews.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <random>
#include <stdexcept>

#include "encoder.h"

namespace {

Split split_of(std::int64_t id) { return id % 10 == 8 ? Split::validation : id % 10 == 9 ? Split::test : Split::train; }

template <class Number>
bool read_number(std::string_view text, Number& number) {
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

Reviews::Reviews(const std::filesystem::path& file, const WordPiece& tokenizer, Split split)
    : pad_id_(tokenizer.pad_id()) {
  std::ifstream in(file, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read the reviews " + file.string());
  std::string line;
  for (std::size_t row = 1; std::getline(in, line); ++row) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    std::string_view view = line;
    std::size_t first = view.find('\t'), second = view.find('\t', first + 1);
    std::int64_t id = 0;
    double rating = 0;
    if (first == view.npos || second == view.npos || !read_number(view.substr(0, first), id) ||
        !read_number(view.substr(first + 1, second - first - 1), rating))
      throw std::runtime_error(file.string() + ":" + std::to_string(row) +
                               ": not an id, a rating and a text between tabs");
    if (rating == 0 || split_of(id) != split) continue;
    reviews_.push_back({tokenizer.encode(view.substr(second + 1)), rating > 0});
  }
}

ReviewBatch Reviews::collate(std::vector<Review> reviews) const {
  std::vector<std::vector<std::int64_t>> sentences;
  std::vector<std::int64_t> labels;
  for (auto& review : reviews) {
    sentences.push_back(std::move(review.tokens));
    labels.push_back(review.positive ? 1 : 0);
  }
  auto [ids, mask] = TokenBatch::pad(sentences, pad_id_);
  return {ids, mask, torch::tensor(labels)};
}

std::vector<std::size_t> Reviews::lengths() const {
  std::vector<std::size_t> lengths;
  for (const auto& review : reviews_) lengths.push_back(review.tokens.size());
  return lengths;
}

LengthBatches::LengthBatches(std::shared_ptr<fabric::IndexSampler> sampler, std::size_t batch_size,
                             std::vector<std::size_t> lengths)
    : sampler_(std::move(sampler)), batch_size_(batch_size), lengths_(std::move(lengths)) {}

// The sampler's order is shuffled: among snippets of one length it decides who meets whom.
void LengthBatches::reset() {
  std::vector<std::size_t> order;
  while (auto index = sampler_->next()) order.push_back(*index);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return lengths_[a] < lengths_[b]; });
  batches_.clear();
  for (std::size_t at = 0; at < order.size(); at += batch_size_)
    batches_.emplace_back(order.begin() + static_cast<std::ptrdiff_t>(at),
                          order.begin() + static_cast<std::ptrdiff_t>(std::min(at + batch_size_, order.size())));
  std::mt19937_64 generator(static_cast<std::uint64_t>(epoch_));
  for (std::size_t i = batches_.size(); i > 1; --i) std::swap(batches_[i - 1], batches_[generator() % i]);
  cursor_ = 0;
}

bool LengthBatches::next(std::vector<std::size_t>& batch) {
  if (cursor_ == batches_.size()) return false;
  batch = batches_[cursor_++];
  return true;
}

std::optional<std::size_t> LengthBatches::size() const {
  auto indices = sampler_->size();
  if (!indices) return std::nullopt;
  return (*indices + batch_size_ - 1) / batch_size_;
}

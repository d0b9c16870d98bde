#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

/// The WordPiece tokenizer of uncased BERT models: lower case without accents, split at spaces and punctuation, each
/// word then covered from its front with the longest pieces that the vocabulary has.
class WordPiece {
 public:
  /// `vocabulary`: one piece a line, the number of the line is its id. `max_tokens` counts [CLS] and [SEP]. Throws
  /// std::runtime_error when the file cannot be read or lacks one of [PAD], [UNK], [CLS], [SEP].
  explicit WordPiece(const std::filesystem::path& vocabulary, std::size_t max_tokens = 256);

  /// [CLS], the text's pieces, [SEP]. What is over max_tokens is cut off before [SEP]. The names of special tokens in
  /// the text ("[MASK]") count as those tokens, as in Python.
  std::vector<std::int64_t> encode(std::string_view text) const;

  std::int64_t pad_id() const { return pad_; }
  std::size_t vocabulary_size() const { return ids_.size(); }

 private:
  void encode_plain(std::string_view text, std::vector<std::int64_t>& out) const;
  void add_word(const std::u32string& word, std::vector<std::int64_t>& out) const;
  std::int64_t id_of(const std::string& piece) const;

  std::unordered_map<std::string, std::int64_t> ids_;
  std::vector<std::pair<std::string, std::int64_t>> special_;
  std::size_t max_tokens_;
  std::int64_t pad_, unknown_, begin_, end_;
};

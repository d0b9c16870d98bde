#include "wordpiece.h"

#include <fstream>
#include <stdexcept>

#include "characters.h"

namespace {
constexpr std::size_t kLongestWord = 100;  // a longer one is unknown as a whole
}

WordPiece::WordPiece(const std::filesystem::path& vocabulary, std::size_t max_tokens) : max_tokens_(max_tokens) {
  std::ifstream file(vocabulary, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read the vocabulary " + vocabulary.string());
  std::string line;
  for (std::int64_t id = 0; std::getline(file, line); ++id) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    ids_.emplace(line, id);
  }
  if (max_tokens < 2) throw std::runtime_error("max_tokens must be 2 or more: [CLS] and [SEP] are two");
  pad_ = id_of("[PAD]");
  unknown_ = id_of("[UNK]");
  begin_ = id_of("[CLS]");
  end_ = id_of("[SEP]");
  for (const char* name : {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"})
    if (auto found = ids_.find(name); found != ids_.end()) special_.emplace_back(name, found->second);
}

std::int64_t WordPiece::id_of(const std::string& piece) const {
  auto found = ids_.find(piece);
  if (found == ids_.end()) throw std::runtime_error("the vocabulary lacks " + piece);
  return found->second;
}

std::vector<std::int64_t> WordPiece::encode(std::string_view text) const {
  std::vector<std::int64_t> out{begin_};
  std::size_t plain = 0;  // where text that is not yet encoded begins
  for (std::size_t at = text.find('['); at != std::string_view::npos; at = text.find('[', at)) {
    std::size_t length = 0;
    for (const auto& [name, id] : special_)
      if (text.substr(at).starts_with(name)) {
        encode_plain(text.substr(plain, at - plain), out);
        out.push_back(id);
        length = name.size();
      }
    at += length > 0 ? length : 1;
    if (length > 0) plain = at;
  }
  encode_plain(text.substr(plain), out);
  if (out.size() >= max_tokens_) out.resize(max_tokens_ - 1);
  out.push_back(end_);
  return out;
}

void WordPiece::encode_plain(std::string_view text, std::vector<std::int64_t>& out) const {
  std::u32string word;
  auto finish = [&] {
    if (!word.empty()) add_word(word, out);
    word.clear();
  };
  for (std::size_t at = 0; at < text.size();) {
    char32_t c = next_character(text, at);
    switch (kind_of(c)) {
      case CharacterKind::dropped:
        break;
      case CharacterKind::space:
        finish();
        break;
      case CharacterKind::alone:
        finish();
        append_folded(word, c);
        finish();
        break;
      case CharacterKind::letter:
        append_folded(word, c);
        break;
    }
  }
  finish();
}

void WordPiece::add_word(const std::u32string& word, std::vector<std::int64_t>& out) const {
  if (word.size() > kLongestWord) return out.push_back(unknown_);
  std::size_t before = out.size();
  for (std::size_t start = 0; start < word.size();) {
    std::size_t end = word.size();
    for (; end > start; --end) {
      std::string piece = start > 0 ? "##" : "";
      for (std::size_t i = start; i < end; ++i) append_utf8(piece, word[i]);
      if (auto found = ids_.find(piece); found != ids_.end()) {
        out.push_back(found->second);
        break;
      }
    }
    if (end == start) {  // no piece fits: the whole word is unknown
      out.resize(before);
      return out.push_back(unknown_);
    }
    start = end;
  }
}

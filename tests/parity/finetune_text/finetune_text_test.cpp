// Tokenizer, encoder and data of examples/finetune_text against what Python made of the same sentences.

#include <torch/torch.h>

#include <filesystem>
#include <fstream>
#include <set>

#include <fabric/base/tree_io.h>

#include "encoder.h"
#include "reviews.h"
#include "tests/support/catch.h"
#include "wordpiece.h"

namespace {

namespace fs = std::filesystem;

struct Recorded {
  std::string text;
  std::vector<int64_t> ids, short_ids;
  std::vector<float> vector;
};

fabric::Tree read(const std::string& path) { return fabric::read_tree_file(path); }

std::vector<int64_t> integers(const fabric::Tree& tree) {
  std::vector<int64_t> list;
  for (const auto& item : tree.as_list()) list.push_back(item.as_int());
  return list;
}

std::vector<Recorded> sentences(const fabric::Tree& record) {
  std::vector<Recorded> list;
  for (const auto& entry : record.at("sentences").as_list()) {
    Recorded one{entry.at("text").as_string(), integers(entry.at("ids")), integers(entry.at("short_ids")), {}};
    for (const auto& x : entry.at("vector").as_list()) one.vector.push_back(static_cast<float>(x.as_double()));
    list.push_back(std::move(one));
  }
  return list;
}

SentenceEncoder small_encoder(const fabric::Tree& record) {
  return SentenceEncoder(EncoderOptions{.vocabulary = record.at("vocab_size").as_int(),
                                        .positions = record.at("max_position_embeddings").as_int(),
                                        .hidden = record.at("hidden_size").as_int(),
                                        .heads = record.at("num_attention_heads").as_int(),
                                        .layers = record.at("num_hidden_layers").as_int(),
                                        .intermediate = record.at("intermediate_size").as_int()});
}

std::string temporary(const std::string& name, const std::string& content) {
  auto path = fs::temp_directory_path() / (name + std::to_string(::getpid()));
  std::ofstream(path, std::ios::binary) << content;
  return path.string();
}

const std::string kSmall = FABRIC_PARITY_DATA "/small.json";
const std::string kVocabulary = FABRIC_PARITY_DATA "/small_vocab.txt";

}  // namespace

TEST_CASE("the example's tokenizer gives Python's ids", "[finetune_text]") {
  auto record = read(kSmall);
  WordPiece whole(kVocabulary, static_cast<size_t>(record.at("max_tokens").as_int()));
  WordPiece cut(kVocabulary, static_cast<size_t>(record.at("short").as_int()));
  auto recorded = sentences(record);
  CHECK(recorded.size() >= 20);
  for (const auto& sentence : recorded) {
    INFO(sentence.text);
    CHECK(whole.encode(sentence.text) == sentence.ids);
    CHECK(cut.encode(sentence.text) == sentence.short_ids);
  }
}

TEST_CASE("the example's tokenizer survives bytes that are no UTF-8", "[finetune_text]") {
  WordPiece tokenizer(kVocabulary);
  auto plain = tokenizer.encode("a film");
  for (const char* broken :
       {"a \xff film", "a \xc3 film", "a\xf0\x9f film", "a \xed\xa0\x80 film", "a \xc0\x80 film\xe2\x82"}) {
    INFO(broken);
    CHECK(tokenizer.encode(broken) == plain);
  }
}

TEST_CASE("the example's tokenizer refuses a vocabulary that is none", "[finetune_text]") {
  CHECK_THROWS_WITH(WordPiece("/no/such/vocab.txt"), Catch::Contains("/no/such/vocab.txt"));
  CHECK_THROWS_WITH(WordPiece(temporary("vocab", "[PAD]\n[UNK]\n[CLS]\n")), Catch::Contains("[SEP]"));
  CHECK_THROWS_WITH(WordPiece(kVocabulary, 1), Catch::Contains("max_tokens"));
}

TEST_CASE("the example's encoder gives Python's sentence vectors", "[finetune_text]") {
  auto record = read(kSmall);
  auto recorded = sentences(record);
  auto encoder = small_encoder(record);
  encoder->load(FABRIC_PARITY_DATA "/small.safetensors");
  encoder->eval();
  torch::NoGradGuard no_grad;
  // Python had one sentence at a time: the padding of a batch must change nothing.
  std::vector<std::vector<int64_t>> tokens;
  for (const auto& sentence : recorded) tokens.push_back(sentence.ids);
  auto batch = TokenBatch::pad(tokens);
  auto vectors = encoder->forward(batch.ids, batch.mask);
  for (size_t i = 0; i < recorded.size(); ++i) {
    INFO(recorded[i].text);
    auto expected = torch::tensor(recorded[i].vector);
    CHECK((vectors[static_cast<int64_t>(i)] - expected).abs().max().item<float>() < 2e-6f);
  }
}

TEST_CASE("frozen parts of the example's encoder stay without dropout in training", "[finetune_text]") {
  auto encoder = small_encoder(read(kSmall));
  auto ids = torch::arange(12).view({2, 6});
  auto mask = torch::ones({2, 6}, torch::kBool);
  auto changes = [&] {
    torch::NoGradGuard no_grad;
    encoder->train();
    return !torch::equal(encoder->forward(ids, mask), encoder->forward(ids, mask));
  };
  CHECK(changes());
  for (auto& parameter : encoder->parameters()) parameter.requires_grad_(false);
  CHECK_FALSE(changes());
  encoder->named_parameters()["encoder.layer.1.output.dense.bias"].requires_grad_(true);
  CHECK(changes());
  encoder->eval();
  torch::NoGradGuard no_grad;
  CHECK(torch::equal(encoder->forward(ids, mask), encoder->forward(ids, mask)));
}

TEST_CASE("the example's encoder says what a weight file lacks", "[finetune_text]") {
  auto record = read(kSmall);
  auto deeper = SentenceEncoder(EncoderOptions{.vocabulary = record.at("vocab_size").as_int(),
                                               .positions = 128,
                                               .hidden = 16,
                                               .heads = 4,
                                               .layers = 3,
                                               .intermediate = 32});
  CHECK_THROWS_WITH(deeper->load(FABRIC_PARITY_DATA "/small.safetensors"),
                    Catch::Contains("encoder.layer.2.attention.self.query.weight"));
  CHECK_THROWS_AS(deeper->load("/no/such/file.safetensors"), fabric::CheckpointError);
}

TEST_CASE("reviews are split by id and labelled by the rating's sign", "[finetune_text]") {
  std::string text;
  for (int id = 1; id <= 40; ++id)
    text += std::to_string(id) + "\t" +
            (id % 7 == 0 ? "0.0"
             : id % 2    ? "1.25"
                         : "-0.5") +
            "\ta film" + (id == 40 ? "" : "\r\n");
  auto path = temporary("reviews", text);
  WordPiece tokenizer(kVocabulary);
  Reviews train(path, tokenizer, Split::train), validation(path, tokenizer, Split::validation),
      test(path, tokenizer, Split::test);
  CHECK(train.size() == 28);      // of 32, without 7, 14, 21 and 35
  CHECK(validation.size() == 3);  // 8, 18, 38
  CHECK(test.size() == 4);
  CHECK_FALSE(validation.get(0).positive);
  CHECK(test.get(0).positive);
  CHECK(train.get(0).tokens == tokenizer.encode("a film"));
  auto batch = test.collate({test.get(0), {{1, 2}, false}});
  auto longest = static_cast<int64_t>(test.get(0).tokens.size());
  CHECK(batch.ids.sizes() == std::vector<int64_t>{2, longest});
  CHECK(batch.mask.sum().item<int64_t>() == longest + 2);
  CHECK(batch.ids[1].slice(0, 2).eq(tokenizer.pad_id()).all().item<bool>());
  CHECK(torch::equal(batch.labels, torch::tensor(std::vector<int64_t>{1, 0})));
  CHECK_THROWS_WITH(Reviews(temporary("odd", "1\t2.0\tfine\n2\tvery\tbad\n"), tokenizer, Split::train),
                    Catch::Contains(":2:"));
}

TEST_CASE("batches of similar length hold each sample once and change with the epoch", "[finetune_text]") {
  std::vector<size_t> lengths;
  for (size_t i = 0; i < 103; ++i) lengths.push_back(3 + i * 37 % 20);
  auto sampler = std::make_shared<fabric::DistributedSampler>(103, fabric::DistributedSampler::Config{});
  LengthBatches batches(sampler, 8, lengths);
  CHECK(batches.size() == 13);
  std::vector<std::vector<size_t>> epochs[2];
  for (int epoch : {0, 1}) {
    sampler->set_epoch(epoch);
    sampler->reset();
    batches.set_epoch(epoch);
    batches.reset();
    std::set<size_t> seen;
    size_t waste = 0;
    for (std::vector<size_t> batch; batches.next(batch);) {
      size_t longest = 0;
      for (size_t i : batch) longest = std::max(longest, lengths[i]);
      for (size_t i : batch) waste += longest - lengths[i];
      seen.insert(batch.begin(), batch.end());
      epochs[epoch].push_back(batch);
    }
    CHECK(epochs[epoch].size() == 13);
    CHECK(seen.size() == 103);
    CHECK(waste < 103);  // under one padded token a sample
  }
  CHECK(epochs[0] != epochs[1]);
}

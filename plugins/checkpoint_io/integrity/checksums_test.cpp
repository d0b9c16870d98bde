// Checkpoints that somebody or something changed: each change of a byte is found, or changes nothing that is read.
#include <torch/torch.h>

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <set>

#include <fabric/base/error.h>
#include <fabric/plugins/checkpoint_io/checkpoint_io.h>
#include <fabric/plugins/checkpoint_io/read_options.h>
#include <fabric/state/state.h>

#include "plugins/checkpoint_io/integrity/sealed_text.h"
#include "plugins/checkpoint_io/sharded/sharded_io.h"
#include "plugins/checkpoint_io/test_files.h"
#include "tests/support/catch.h"

using namespace checkpoint_test;
using namespace fabric;
using Catch::Matchers::Contains;

namespace {

namespace fs = std::filesystem;

Value sample() {
  return Value::Map{{"model", Value::Map{{"w", torch::arange(6.0).reshape({2, 3})},
                                         {"flags", torch::tensor({true, false})},
                                         {"waves", torch::complex(torch::arange(2.0), torch::ones(2))},
                                         {"none", torch::empty({0, 4})}}},
                    {"epoch", 3},
                    {"name", "a"}};
}

/// Flips every bit of the file in turn; each must be refused or read as before.
void every_flip(const fs::path& file, const fs::path& checkpoint) {
  const auto good = read_file(file);
  const Value before = make_checkpoint_io()->load(checkpoint);
  std::size_t found = 0;
  for (std::size_t i = 0; i < good.size(); ++i)
    for (int bit = 0; bit < 8; ++bit) {
      auto bad = good;
      bad[i] = static_cast<char>(bad[i] ^ 1 << bit);
      write_file(file, bad);
      try {
        if (!same(make_checkpoint_io()->load(checkpoint), before)) FAIL("bit " << bit << " of byte " << i);
      } catch (const CheckpointError&) {
        ++found;
      }
    }
  write_file(file, good);
  // What is harmless: a flip in the name of the metadata that holds the sums.
  CHECK(found + 8 * 32 >= 8 * good.size());
}

std::string header_of(const std::string& bytes) {
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof length);
  return bytes.substr(8, length);
}

/// The file as it was before there were checksums.
std::string without_sums(std::string bytes) {
  const std::string key = "\"torchfabric.crc32c\"";
  const auto at = bytes.find(key);
  REQUIRE(at != bytes.npos);
  const auto end = bytes.find("\",", at + key.size() + 2) + 2;
  bytes.replace(at, end - at, std::string(end - at, ' '));
  return bytes;
}

}  // namespace

TEST_CASE("a flip of any bit of a file is found or harmless", "[checkpoint][sums]") {
  Folder folder;
  make_checkpoint_io()->save(sample(), folder / "f");
  every_flip(folder / "f", folder / "f");
}

TEST_CASE("a flip of any bit of a sharded checkpoint is found or harmless", "[checkpoint][sums][sharded]") {
  Folder folder;
  make_checkpoint_io("sharded")->save(sample(), folder / "c");
  for (const auto& entry : fs::directory_iterator(folder / "c")) every_flip(entry.path(), folder / "c");
}

TEST_CASE("a damaged tensor is named, with file and bytes", "[checkpoint][sums]") {
  Folder folder;
  make_checkpoint_io()->save(sample(), folder / "f");
  auto good = read_file(folder / "f");
  auto bad = good;
  const std::size_t begin = 8 + header_of(good).size();
  bad[begin + 1] = static_cast<char>(bad[begin + 1] ^ 4);
  write_file(folder / "f", bad);
  auto io = make_checkpoint_io();
  CHECK_THROWS_AS(io->load(folder / "f"), CheckpointCorrupt);
  CHECK_THROWS_WITH(io->load(folder / "f"),
                    Contains((folder / "f").string()) && Contains("is damaged: bytes " + std::to_string(begin)));
  CHECK_THROWS_AS(load_checkpoint_part(folder / "f", "model"), CheckpointCorrupt);
  // Looking at values costs the header only.
  CHECK(peek_checkpoint(folder / "f").at("epoch").as_int() == 3);
  // Whoever asks for it gets what there is.
  CHECK(make_checkpoint_io("safetensors", {.verify = false})->load(folder / "f").at("epoch").as_int() == 3);
  CHECK(load_checkpoint_part(folder / "f", "model", {.verify = false}).value.as_map().size() == 4);
}

TEST_CASE("files without checksums are read as before", "[checkpoint][sums]") {
  Folder folder;
  make_checkpoint_io()->save(sample(), folder / "f");
  write_file(folder / "f", without_sums(read_file(folder / "f")));
  CHECK(same(make_checkpoint_io()->load(folder / "f"), sample()));
  // The index of version 1.
  make_checkpoint_io("sharded")->save(sample(), folder / "c");
  auto shard = folder / "c/shard-00000-of-00001.safetensors";
  write_file(shard, without_sums(read_file(shard)));
  CHECK_THROWS_WITH(make_checkpoint_io()->load(folder / "c"), Contains("has no checksums"));
  auto index = read_file(folder / "c/index.json");
  index.replace(index.find("\"version\":2"), 11, "\"version\":1");
  for (auto at = index.find(",\"", index.find("\"chunks\"")); at != index.npos; at = index.find(",\"", at + 1))
    if (index.size() > at + 11 && index.substr(at + 10, 2) == "\"]") index.erase(at, 11);
  write_file(folder / "c/index.json", index);
  CHECK(same(make_checkpoint_io()->load(folder / "c"), sample()));
}

TEST_CASE("sums that do not belong to the file are refused", "[checkpoint][sums]") {
  Folder folder;
  make_checkpoint_io()->save(Value::Map{{"w", torch::ones(4)}}, folder / "f");
  const auto good = read_file(folder / "f");
  const std::string mark = "\"torchfabric.crc32c\":\"";
  auto sealed_again = [&](std::size_t at, std::size_t size, const std::string& text) {
    auto header = header_of(good);
    header.replace(header.find(mark) + mark.size() + at, size, text);
    header.resize(header_of(good).size(), ' ');
    checkpoint::seal(header, 0, mark);
    write_file(folder / "g", good.substr(0, 8) + header + good.substr(8 + header.size()));
  };
  sealed_again(8, 8, good.substr(good.find(mark) + mark.size() + 8, 8));
  CHECK_NOTHROW(make_checkpoint_io()->load(folder / "g"));
  sealed_again(8, 8, "00000000");
  CHECK_THROWS_WITH(make_checkpoint_io()->load(folder / "g"), Contains("the tensor 'w' is damaged"));
  sealed_again(8, 8, "0000000G");
  CHECK_THROWS_WITH(make_checkpoint_io()->load(folder / "g"), Contains("hexadecimal"));
  sealed_again(8, 8, "");
  CHECK_THROWS_WITH(make_checkpoint_io()->load(folder / "g"), Contains("checksums for 1 tensors"));
}

TEST_CASE("a pipe gets the same bytes as a file", "[checkpoint][sums]") {
  Folder folder;
  make_checkpoint_io()->save(sample(), folder / "f");
  const auto fifo = (folder / "p").string(), copy = (folder / "copy").string();
  REQUIRE(std::system(("mkfifo '" + fifo + "' && cat '" + fifo + "' > '" + copy + "' &").c_str()) == 0);
  for (int i = 0; i < 200 && !fs::exists(copy); ++i) usleep(10'000);
  for (bool written = false; !written;) try {
      make_checkpoint_io()->save(sample(), fifo);
      written = true;
    } catch (const CheckpointError& error) {  // cat has not opened it yet
      REQUIRE_THAT(std::string(error.what()), Contains("nobody reads"));
      usleep(10'000);
    }
  for (int i = 0; i < 500 && fs::file_size(copy) < fs::file_size(folder / "f"); ++i) usleep(10'000);
  CHECK(read_file(copy) == read_file(folder / "f"));
}

TEST_CASE("a load that meets damaged shards has changed nothing", "[checkpoint][sums][sharded]") {
  Folder folder;
  auto saved = [](double fill) {
    torch::nn::Linear model(3, 2);
    torch::NoGradGuard no_grad;
    for (auto& parameter : model->parameters()) parameter.fill_(fill);
    return model;
  };
  auto model = saved(1);
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
  model(torch::ones({1, 3})).sum().backward();
  optimizer.step();
  make_checkpoint_io("sharded")->save(
      Value::Map{{"model", module_state_dict(*model)}, {"optimizer", optimizer_state_dict(optimizer)}}, folder / "c");
  const auto shard = folder / "c/shard-00000-of-00001.safetensors";
  const auto good = read_file(shard);
  const std::size_t start = 8 + header_of(good).size();
  std::set<std::string> texts;
  for (std::size_t i = start; i < good.size(); i += 4) {
    auto bad = good;
    bad[i] = static_cast<char>(bad[i] ^ 64);
    write_file(shard, bad);
    auto fresh = saved(7);
    torch::optim::SGD other(fresh->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
    State state{{"model", fresh}, {"optimizer", other}};
    try {
      restore_state(state, make_checkpoint_io()->open(folder / "c"), StateAccess::plain(), true);
      FAIL("byte " << i << " was taken");
    } catch (const CheckpointCorrupt& error) {
      texts.insert(error.what());
      CHECK_THAT(std::string(error.what()),
                 Contains("shard-00000-of-00001.safetensors") && Contains((folder / "c").string()));
    }
    for (const auto& parameter : fresh->parameters()) CHECK(torch::equal(parameter, torch::full_like(parameter, 7)));
    CHECK(other.state().empty());
  }
  CHECK(texts.size() >= 4);  // weight, bias and their momenta
}

TEST_CASE("of a box the chunks that it holds whole are compared", "[checkpoint][sums][sharded]") {
  Folder folder;
  auto writer = checkpoint::make_shard_writer();
  const auto place = writer->begin(folder / "c");
  std::vector<Value> parts;
  for (int rank : {0, 1}) {
    StatePart part{Value::Map{{"w", torch::ones({3, 2})}}, {{"w", {{6, 2}, {3 * rank, 0}}}}};
    parts.push_back(writer->write(place, part, rank, 2));
  }
  writer->commit(place, folder / "c", parts);
  const auto second = folder / "c/shard-00001-of-00002.safetensors";
  auto bytes = read_file(second);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  write_file(second, bytes);
  auto weight = make_checkpoint_io()->open(folder / "c").at("w").as<at::Tensor>();
  auto some = torch::zeros({3, 2});
  CHECK_NOTHROW(read_box(weight, {0, 0}, some));  // the first chunk
  auto part = torch::zeros({1, 2});
  CHECK_NOTHROW(read_box(weight, {3, 0}, part));  // a part of the second
  auto all = torch::zeros({6, 2});
  CHECK_THROWS_WITH(read_box(weight, {0, 0}, all), Contains("the tensor 'w' is damaged"));
  weight = make_checkpoint_io("sharded", {.verify = false})->open(folder / "c").at("w").as<at::Tensor>();
  CHECK_NOTHROW(read_box(weight, {0, 0}, all));
}

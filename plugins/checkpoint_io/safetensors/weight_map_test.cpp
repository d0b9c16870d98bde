// Weights in several files with an index, as Hugging Face's libraries write and read them.
#include <torch/torch.h>

#include <functional>

#include <fabric/base/error.h>
#include <fabric/base/tree_io.h>
#include <fabric/plugins/checkpoint_io/checkpoint_io.h>
#include <fabric/plugins/checkpoint_io/checkpoint_part.h>
#include <fabric/plugins/checkpoint_io/read_options.h>
#include <fabric/plugins/checkpoint_io/weight_shards.h>

#include "plugins/checkpoint_io/test_files.h"
#include "tests/support/catch.h"
#include "tests/support/failure_of.h"

using namespace fabric;
using Catch::Matchers::Contains;
using checkpoint_test::Folder;
using checkpoint_test::read_file;
using checkpoint_test::same;
using checkpoint_test::write_file;

namespace {

namespace fs = std::filesystem;

constexpr const char* kIndex = "model.safetensors.index.json";

Value::Map weights() {
  return {{"embed.weight", torch::arange(10, at::kFloat)},                  // 40 bytes
          {"layer.weight", torch::arange(12, at::kFloat).reshape({3, 4})},  // 48
          {"layer.bias", torch::ones({2}, at::kBFloat16)},                  // 4
          {"scale", torch::tensor(2.5f)},                                   // 4
          {"none", torch::empty({0, 3})}};
}

void index(const Folder& folder, const std::string& weight_map) {
  write_file(folder / kIndex, "{\"metadata\": {\"total_size\": 0}, \"weight_map\": " + weight_map + "}");
}

/// Two files, as another program writes them.
void two_files(const Folder& folder) {
  auto io = make_checkpoint_io();
  io->save(Value::Map{{"a", torch::ones({2})}}, folder / "model-00001-of-00002.safetensors");
  io->save(Value::Map{{"b", torch::zeros({3})}, {"c", torch::ones({1})}}, folder / "model-00002-of-00002.safetensors");
  index(folder, R"({"c": "model-00002-of-00002.safetensors", "a": "model-00001-of-00002.safetensors",
                    "b": "model-00002-of-00002.safetensors"})");
}

std::string damage_of(const Folder& folder) {
  return failure_of<CheckpointCorrupt>([&] { make_checkpoint_io()->load(folder.path()); });
}

}  // namespace

TEST_CASE("weights are split by size and come back", "[checkpoint_io][weight_map]") {
  Folder folder;
  CHECK(save_weight_shards(weights(), folder / "out", 60) == 2);
  CHECK(fs::exists(folder / "out" / "model-00002-of-00002.safetensors"));
  const Tree index = read_json(read_file(folder / "out" / kIndex));
  CHECK(index.at("metadata").at("total_size").as_int() == 96);
  CHECK(index.at("weight_map").at("layer.bias").as_string() == "model-00002-of-00002.safetensors");
  auto io = make_checkpoint_io();
  CHECK(same(io->load(folder / "out"), weights()));
  CHECK(same(io->load(folder / "out" / kIndex), weights()));
  CHECK(same(io->open(folder / "out"), weights()));
  CHECK(same(peek_checkpoint(folder / "out"), weights()));
  CHECK(same(load_checkpoint_part(folder / "out", "layer.weight").value, weights().at("layer.weight")));
  // A tensor that is larger than a file may be has one of its own.
  CHECK(save_weight_shards(weights(), folder / "small", 1) >= 4);
  CHECK(same(io->load(folder / "small"), weights()));
  CHECK(save_weight_shards(Value::Map{{"model", weights()}}, folder / "nested", 1'000'000) == 1);
  CHECK(io->load(folder / "nested").find("model.scale"));
  // No trace of another format: other programs look at the metadata.
  CHECK_THAT(read_file(folder / "nested" / "model-00001-of-00001.safetensors"), !Contains("fabric"));
}

TEST_CASE("what cannot be weights in several files is refused, and nothing is left", "[checkpoint_io][weight_map]") {
  Folder folder;
  auto refused = [&](const Value& value) {
    return failure_of<CheckpointError>([&] { save_weight_shards(value, folder / "out", 100); });
  };
  CHECK_THAT(refused(Value::Map{{"model", weights()}, {"epoch", 3}}), Contains("'epoch'"));
  CHECK_THAT(refused(Value::Map{{"z", torch::ones({1}, at::kComplexFloat)}}), Contains("'z'"));
  CHECK_THAT(refused(Value::Map{{"a.b", torch::ones({1})}, {"a", Value::Map{{"b", torch::ones({1})}}}}),
             Contains("'a.b'"));
  CHECK_THAT(refused(Value::Map{}), Contains("no tensor"));
  CHECK(folder.names().empty());
  fs::create_directory(folder / "out");
  CHECK(refused(weights()).empty());  // an empty folder is as good as none
  CHECK_THAT(refused(weights()), Contains("holds something already"));
  CHECK(folder.names().size() == 1);
}

TEST_CASE("an index of another program is read in its order", "[checkpoint_io][weight_map]") {
  Folder folder;
  two_files(folder);
  const Value all = make_checkpoint_io()->load(folder.path());
  REQUIRE(all.as_map().size() == 3);
  CHECK(all.as_map().begin()->first == "c");
  CHECK(all.at("b").as<at::Tensor>().numel() == 3);
  // Files of torch.save, and a folder without an index.
  Folder other;
  make_checkpoint_io("torch")->save(Value::Map{{"w", torch::ones({2})}}, other / "pytorch_model-1.bin");
  write_file(other / "pytorch_model.bin.index.json", R"({"weight_map": {"w": "pytorch_model-1.bin"}})");
  CHECK(make_checkpoint_io()->load(other.path()).at("w").as<at::Tensor>().numel() == 2);
  Folder single;
  make_checkpoint_io()->save(Value::Map{{"w", torch::ones({2})}}, single / "model.safetensors");
  CHECK(make_checkpoint_io()->load(single.path()).find("w"));
}

TEST_CASE("checksums of the files are compared where they have some", "[checkpoint_io][weight_map][corrupt]") {
  Folder folder;
  two_files(folder);
  const auto second = folder / "model-00002-of-00002.safetensors";
  auto bytes = read_file(second);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  write_file(second, bytes);
  CHECK_THAT(damage_of(folder), Contains("its file 'model-00002-of-00002.safetensors': the tensor '"));
  CHECK(make_checkpoint_io("safetensors", {.verify = false})->load(folder.path()).as_map().size() == 3);
}

TEST_CASE("an index that does not fit its files is refused with the names", "[checkpoint_io][weight_map][corrupt]") {
  Folder folder;
  two_files(folder);
  const std::string one = "model-00001-of-00002.safetensors", two = "model-00002-of-00002.safetensors";
  index(folder, "{\"a\": \"" + one + "\", \"x\": \"gone.safetensors\", \"y\": \"lost.safetensors\"}");
  CHECK_THAT(damage_of(folder), Contains("'gone.safetensors', 'lost.safetensors'"));
  index(folder, "{\"a\": \"" + one + "\", \"x\": \"" + one + "\", \"y\": \"" + one + "\"}");
  CHECK_THAT(damage_of(folder), Contains("lacks") && Contains("'x', 'y'") && Contains(one));
  index(folder, "{\"a\": \"../" + one + "\"}");
  CHECK_THAT(damage_of(folder), Contains("no plain name"));
  index(folder, "{\"a\": \"/etc/passwd\"}");
  CHECK_THAT(damage_of(folder), Contains("no plain name"));
  index(folder, "{\"a\": 1}");
  CHECK_THAT(damage_of(folder), Contains("names no file for 'a'"));
  index(folder, "{}");
  CHECK_THAT(damage_of(folder), Contains("lists no tensor"));
  index(folder, "[]");
  CHECK_THAT(damage_of(folder), Contains("'weight_map'"));
  index(folder, "{\"a\": \"" + one + "\", \"a\": \"" + two + "\"}");
  CHECK_FALSE(damage_of(folder).empty());
  make_checkpoint_io()->save(Value::Map{{"a", torch::ones({2})}, {"b", torch::ones({3})}}, folder / two);
  index(folder, "{\"a\": \"" + one + "\", \"b\": \"" + two + "\"}");
  CHECK_THAT(damage_of(folder), Contains("'a'") && Contains(one) && Contains(two));
  write_file(folder / one, "torn");
  CHECK_THAT(damage_of(folder), Contains(one));
}

// Feeds bytes to the reader of sharded checkpoints: what begins with a brace as the index of a folder, all else as one
// of its shards. The rest of the folder is that of tests/fuzz/sharded_corpus, which is the corpus, too.
#include <iterator>

#include <ATen/core/Tensor.h>

#include <fabric/plugins/checkpoint_io/read_options.h>

#include "tests/fuzz/checkpoint_folder.h"

namespace {

namespace fs = std::filesystem;

constexpr const char* kShards[] = {"shard-00000-of-00002.safetensors", "shard-00001-of-00002.safetensors"};

std::string content_of(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

struct TwoShards : fuzz::CheckpointFolder {
  TwoShards() : fixtures(FABRIC_SHARDED_FIXTURES), index(content_of(fixtures / "index.json")) {
    fs::copy_file(fixtures / kShards[0], path / kShards[0]);
    last_bytes = "\"bytes\":" + std::to_string(fs::file_size(fixtures / kShards[1])) + "}]";
  }
  /// Whatever it is, the index says that it has the right size.
  void put_either(const std::string& input) const {
    const bool is_index = input.starts_with('{');
    std::string text = is_index ? input : index;
    if (!is_index)
      text.replace(text.find(last_bytes), last_bytes.size(), "\"bytes\":" + std::to_string(input.size()) + "}]");
    const std::string shard = is_index ? content_of(fixtures / kShards[1]) : input;
    put("index.json", text.data(), text.size());
    put(kShards[1], shard.data(), shard.size());
  }
  fs::path fixtures;
  std::string index, last_bytes;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const TwoShards folder;
  // A changed byte is found by its checksum as a rule; without, the reader sees what was changed.
  static const auto compares = fabric::make_checkpoint_io("sharded"),
                    believes = fabric::make_checkpoint_io("sharded", {.verify = false});
  folder.put_either({reinterpret_cast<const char*>(data), size});
  fuzz::read([&] { compares->load(folder.path); });
  fuzz::read([&] { believes->load(folder.path); });
  fuzz::read([&] { fabric::load_checkpoint_part(folder.path, "model", {.verify = false}); });
  return 0;
}

// Feeds bytes to the reader of sharded checkpoints: what begins with a brace as the index of a folder, all else as one
// of its shards. The rest of the folder is that of tests/fuzz/sharded_corpus, which is the corpus, too.
#include <stdlib.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include <ATen/core/Tensor.h>

#include <fabric/base/error.h>
#include <fabric/plugins/checkpoint_io/read_options.h>

namespace {

namespace fs = std::filesystem;

constexpr const char* kShards[] = {"shard-00000-of-00002.safetensors", "shard-00001-of-00002.safetensors"};

std::string content_of(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// Goes with the program.
struct Folder {
  Folder() : fixtures(FABRIC_SHARDED_FIXTURES), index(content_of(fixtures / "index.json")) {
    std::string pattern = (fs::temp_directory_path() / "fabric-fuzz-XXXXXX").string();
    path = mkdtemp(pattern.data()) ? pattern : "";
    fs::copy_file(fixtures / kShards[0], path / kShards[0]);
    last_bytes = "\"bytes\":" + std::to_string(fs::file_size(fixtures / kShards[1])) + "}]";
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
  void write(const char* name, const std::string& content) const {
    std::error_code ignored;
    fs::remove(path / name, ignored);
    std::ofstream(path / name, std::ios::binary).write(content.data(), static_cast<std::streamsize>(content.size()));
  }
  /// Whatever it is, the index says that it has the right size.
  void put(const std::string& input) const {
    const bool is_index = input.starts_with('{');
    std::string text = is_index ? input : index;
    if (!is_index)
      text.replace(text.find(last_bytes), last_bytes.size(), "\"bytes\":" + std::to_string(input.size()) + "}]");
    write("index.json", text);
    write(kShards[1], is_index ? content_of(fixtures / kShards[1]) : input);
  }
  fs::path fixtures, path;
  std::string index, last_bytes;
};

template <class Load>
void read(Load load) {
  try {
    load();
  } catch (const fabric::CheckpointError&) {  // anything else is a finding
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Folder folder;
  // A changed byte is found by its checksum as a rule; without, the reader sees what was changed.
  static const auto compares = fabric::make_checkpoint_io("sharded"),
                    believes = fabric::make_checkpoint_io("sharded", {.verify = false});
  folder.put({reinterpret_cast<const char*>(data), size});
  read([&] { compares->load(folder.path); });
  read([&] { believes->load(folder.path); });
  read([&] { fabric::load_checkpoint_part(folder.path, "model", {.verify = false}); });
  return 0;
}

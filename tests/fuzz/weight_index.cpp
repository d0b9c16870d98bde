// Feeds bytes to the reader of weights in several files, as the index of a folder with two files of tensors.
#include <stdlib.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

#include <ATen/ops/ones.h>

#include <fabric/base/error.h>
#include <fabric/plugins/checkpoint_io/checkpoint_io.h>
#include <fabric/plugins/checkpoint_io/checkpoint_part.h>

namespace {

namespace fs = std::filesystem;

/// Goes with the program.
struct Folder {
  Folder() {
    std::string pattern = (fs::temp_directory_path() / "fabric-fuzz-XXXXXX").string();
    path = mkdtemp(pattern.data()) ? pattern : "";
    auto io = fabric::make_checkpoint_io();
    using Map = fabric::Value::Map;
    io->save(Map{{"a", at::ones({2})}}, path / "model-00001-of-00002.safetensors");
    io->save(Map{{"b", at::ones({3})}, {"c", at::ones({1})}}, path / "model-00002-of-00002.safetensors");
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
  fs::path path;
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
  static const auto io = fabric::make_checkpoint_io();
  std::ofstream(folder.path / "model.safetensors.index.json", std::ios::binary | std::ios::trunc)
      .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  read([&] { io->load(folder.path); });
  read([&] { fabric::load_checkpoint_part(folder.path, "b"); });
  return 0;
}

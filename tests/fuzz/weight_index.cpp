// Feeds bytes to the reader of weights in several files, as the index of a folder with two files of tensors.
#include <ATen/ops/ones.h>

#include <fabric/plugins/checkpoint_io/checkpoint_io.h>
#include <fabric/plugins/checkpoint_io/checkpoint_part.h>

#include "tests/fuzz/checkpoint_folder.h"

namespace {

struct TwoFiles : fuzz::CheckpointFolder {
  TwoFiles() {
    auto io = fabric::make_checkpoint_io();
    using Map = fabric::Value::Map;
    io->save(Map{{"a", at::ones({2})}}, path / "model-00001-of-00002.safetensors");
    io->save(Map{{"b", at::ones({3})}, {"c", at::ones({1})}}, path / "model-00002-of-00002.safetensors");
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const TwoFiles folder;
  static const auto io = fabric::make_checkpoint_io();
  folder.put("model.safetensors.index.json", data, size);
  fuzz::read([&] { io->load(folder.path); });
  fuzz::read([&] { fabric::load_checkpoint_part(folder.path, "b"); });
  return 0;
}

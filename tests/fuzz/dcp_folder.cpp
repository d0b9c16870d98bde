// Feeds bytes to the reader of Python's distributed checkpoints, as the `.metadata` of a folder whose files of tensors
// are those of tests/parity/dcp/two_ranks, which is the corpus, too.
#include <stdlib.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

#include <ATen/core/Tensor.h>

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
    for (const char* name : {"__0_0.distcp", "__1_0.distcp"})
      fs::create_symlink(fs::path(FABRIC_DCP_FIXTURES) / "two_ranks" / name, path / name);
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
  std::ofstream(folder.path / ".metadata", std::ios::binary | std::ios::trunc)
      .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  read([&] { io->load(folder.path); });
  read([&] { io->open(folder.path); });
  read([&] { fabric::load_checkpoint_part(folder.path, "model"); });
  return 0;
}

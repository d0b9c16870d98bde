// Feeds bytes to the reader of Python's distributed checkpoints, as the `.metadata` of a folder whose files of tensors
// are those of tests/parity/dcp/two_ranks, which is the corpus, too.
#include <ATen/core/Tensor.h>

#include <fabric/plugins/checkpoint_io/checkpoint_io.h>
#include <fabric/plugins/checkpoint_io/checkpoint_part.h>

#include "tests/fuzz/checkpoint_folder.h"

namespace {

struct TwoRanks : fuzz::CheckpointFolder {
  TwoRanks() {
    for (const char* name : {"__0_0.distcp", "__1_0.distcp"})
      fuzz::fs::create_symlink(fuzz::fs::path(FABRIC_DCP_FIXTURES) / "two_ranks" / name, path / name);
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const TwoRanks folder;
  static const auto io = fabric::make_checkpoint_io();
  folder.put(".metadata", data, size);
  fuzz::read([&] { io->load(folder.path); });
  fuzz::read([&] { io->open(folder.path); });
  fuzz::read([&] { fabric::load_checkpoint_part(folder.path, "model"); });
  return 0;
}

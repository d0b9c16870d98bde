// Feeds bytes to the checkpoint reader. The corpus is tests/parity/checkpoints, of which libFuzzer is given a copy:
// fabric_fuzz_checkpoint CORPUS -max_len=20000
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <string>

#include <ATen/core/Tensor.h>

#include <fabric/base/error.h>
#include <fabric/plugins/checkpoint_io/checkpoint_io.h>
#include <fabric/plugins/checkpoint_io/checkpoint_part.h>

namespace {

template <class Load>
void read(Load load) {
  try {
    auto value = load();
    fabric::for_each_leaf_tensor(value, [](at::Tensor& tensor, const std::string&) {
      if (tensor.defined()) tensor = tensor.clone();
    });
  } catch (const fabric::CheckpointError&) {  // anything else is a finding
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const int file = memfd_create("checkpoint", 0);
  static const auto io = fabric::make_checkpoint_io();
  const std::string path = "/proc/self/fd/" + std::to_string(file);
  if (ftruncate(file, 0) != 0 || pwrite(file, data, size, 0) != static_cast<ssize_t>(size)) return -1;
  // Whole, and passing over what only Python could make.
  read([&] { return io->load(path); });
  read([&] { return fabric::load_checkpoint_part(path, "").value; });
  read([&] { return fabric::load_checkpoint_part(path, "model").value; });
  return 0;
}

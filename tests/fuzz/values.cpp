// Feeds bytes to the reader of nested values that travel between ranks: cmake -DFABRIC_FUZZ=ON with clang, then
// fabric_fuzz_values CORPUS -max_len=20000. The first letter says nothing; the replay leaves it alone.
#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include <fabric/base/error.h>

#include "fabric/base/value_codec_internal.h"

using namespace fabric;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  try {
    std::vector<at::Tensor> large, sent;
    auto value = collectives::decode(data + 1, size - 1, c10::kCPU, large);
    if (!large.empty()) return 0;  // their bytes are not here
    auto again = collectives::encode(value, 1 << 20, sent);
    collectives::decode(again.data(), again.size(), c10::kCPU, large);
  } catch (const CollectiveError&) {  // anything else is a finding
  }
  return 0;
}

#include "fabric/state/optimizer_archive_internal.h"

#include <cstring>
#include <string>

#include <ATen/ops/empty.h>
#include <torch/optim/optimizer.h>
#include <torch/serialize/archive.h>

#include <fabric/base/error.h>

namespace fabric {

at::Tensor optimizer_archive(const torch::optim::Optimizer& optimizer) {
  torch::serialize::OutputArchive archive;
  optimizer.save(archive);
  std::string bytes;
  archive.save_to([&](const void* data, std::size_t size) {
    bytes.append(static_cast<const char*>(data), size);
    return size;
  });
  torch::serialize::InputArchive written;
  written.load_from(bytes.data(), bytes.size());
  if (written.keys().empty()) return {};
  at::Tensor out = at::empty({static_cast<std::int64_t>(bytes.size())}, at::kByte);
  std::memcpy(out.mutable_data_ptr(), bytes.data(), bytes.size());
  return out;
}

void load_optimizer_archive(torch::optim::Optimizer& optimizer, const at::Tensor& archive) {
  at::Tensor bytes = archive.cpu().contiguous();
  try {
    torch::serialize::InputArchive input;
    input.load_from(static_cast<const char*>(bytes.const_data_ptr()), bytes.nbytes());
    optimizer.load(input);
  } catch (const c10::Error& error) {
    throw CheckpointKeyError(std::string("the optimizer's own load refused its saved state: ") +
                             error.what_without_backtrace());
  }
}

}  // namespace fabric

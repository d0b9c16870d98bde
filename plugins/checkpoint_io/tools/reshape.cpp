// A checkpoint in other files: one out of many, many out of one. The writers are those of every save, so that what they
// promise holds here too: the same bytes, whole or not at all, with checksums. They are given tensors that are still in
// the source and read piece by piece; each piece goes through PassedOn, which counts it and gives the pages of the
// source back, so that memory holds a piece and never a checkpoint.
#include <algorithm>

#include <fabric/base/error.h>
#include <fabric/state/sharding.h>

#include "plugins/checkpoint_io/open_checkpoint.h"
#include "plugins/checkpoint_io/safetensors/safetensors.h"
#include "plugins/checkpoint_io/sharded/sharded_io.h"
#include "plugins/checkpoint_io/structure.h"
#include "plugins/checkpoint_io/tools/tools.h"

namespace fabric::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kReleaseEvery = std::uint64_t{16} << 20;
constexpr std::uint64_t kSplitFrom = std::uint64_t{1} << 20;  // smaller tensors stay whole
constexpr int kMostShards = 4096;                             // a tensor has no more chunks

/// The source and how far it has been copied.
struct Copying {
  OpenCheckpoint source;
  ToolProgress progress;
  std::uint64_t done = 0, total = 0, kept = 0;

  void copied(std::uint64_t bytes) {
    done += bytes;
    if ((kept += bytes) >= kReleaseEvery) {
      for (const auto& file : source.files) file->release();
      kept = 0;
    }
    if (progress) progress("writing", done, total);
  }
};

/// A box of a tensor of the source.
class PassedOn : public StoredTensor {
 public:
  PassedOn(at::Tensor source, std::vector<std::int64_t> begin, std::shared_ptr<Copying> copying)
      : source_(std::move(source)), begin_(std::move(begin)), copying_(std::move(copying)) {}
  void read(at::IntArrayRef offsets, at::Tensor& into) const override {
    auto at = begin_;
    for (std::size_t d = 0; d < at.size(); ++d) at[d] += offsets[d];
    read_box(source_, at, into);
    copying_->copied(into.nbytes());
  }

 private:
  at::Tensor source_;
  std::vector<std::int64_t> begin_;
  std::shared_ptr<Copying> copying_;
};

at::Tensor passed_on(const at::Tensor& source, std::int64_t first, std::int64_t rows,
                     const std::shared_ptr<Copying>& copying) {
  if (!source.defined() || source.layout() != c10::kStrided || source.numel() == 0) return source;
  auto shape = source.sizes().vec();
  std::vector<std::int64_t> begin(shape.size(), 0);
  if (!shape.empty()) begin[0] = first, shape[0] = rows;
  return make_stored_tensor(shape, source.scalar_type(), std::make_shared<PassedOn>(source, std::move(begin), copying));
}

std::int64_t rows_of(const at::Tensor& tensor) { return tensor.defined() && tensor.dim() > 0 ? tensor.size(0) : 1; }

void require_sound_source(const fs::path& path, const CopyOptions& options) {
  if (!options.verify) return;
  const auto report = verify_checkpoint(path, options.progress);
  if (report.faults.empty()) return;
  std::string text = "'" + path.string() + "' is damaged:";
  for (const auto& fault : report.faults) text += "\n  " + fault;
  throw CheckpointCorrupt(text);
}

std::shared_ptr<Copying> open_source(const fs::path& path, const CopyOptions& options, CopyReport& report) {
  require_sound_source(path, options);
  auto copying = std::make_shared<Copying>();
  copying->source = open_checkpoint(path);
  copying->progress = options.progress;
  for_each_leaf_tensor(copying->source.value, [&](at::Tensor& tensor, const std::string&) {
    if (!tensor.defined()) return;
    ++report.tensors;
    if (tensor.layout() == c10::kStrided) report.bytes += tensor.nbytes();
  });
  copying->total = report.bytes;
  return copying;
}

// A rank's part: of each tensor that is large enough its rows, all else whole, for the writer to share out. The names
// are those that the writer gives the tensors, in the order in which both go through the tree.
StatePart part_of_rank(const std::shared_ptr<Copying>& copying, const std::vector<std::string>& names, int rank,
                       int shards) {
  StatePart part{copying->source.value};
  std::size_t next = 0;
  for_each_leaf_tensor(part.values, [&](at::Tensor& tensor, const std::string&) {
    if (!tensor.defined()) return;
    const auto& name = names[next++];
    const auto rows = rows_of(tensor);
    if (tensor.layout() != c10::kStrided || tensor.nbytes() < kSplitFrom || rows < shards || shards == 1) {
      tensor = passed_on(tensor, 0, rows, copying);
      return;
    }
    const auto first = rows * rank / shards, end = rows * (rank + 1) / shards;
    Shard shard{tensor.sizes().vec(), std::vector<std::int64_t>(tensor.sizes().size(), 0)};
    shard.offsets[0] = first;
    part.shards.emplace(name, std::move(shard));
    tensor = passed_on(tensor, first, end - first, copying);
  });
  return part;
}

}  // namespace

CopyReport consolidate_checkpoint(const fs::path& folder, const fs::path& file, const CopyOptions& options) {
  if (!looks_sharded(folder))
    throw CheckpointError("'" + folder.string() +
                          "' is no sharded checkpoint; fabric convert makes one file of others");
  CopyReport report;
  auto copying = open_source(folder, options, report);
  Value whole = copying->source.value;
  for_each_leaf_tensor(
      whole, [&](at::Tensor& tensor, const std::string&) { tensor = passed_on(tensor, 0, rows_of(tensor), copying); });
  write_safetensors(whole, file);
  return report;
}

CopyReport shard_checkpoint(const fs::path& source, const fs::path& folder, int shards, const CopyOptions& options) {
  if (shards < 1 || shards > kMostShards)
    throw MisuseError(std::to_string(shards) + " shards were asked for; from 1 to " + std::to_string(kMostShards) +
                      " can be made");
  CopyReport report;
  auto copying = open_source(source, options, report);
  std::vector<std::string> names;
  for (const auto& entry : flatten(copying->source.value).tensors) names.push_back(entry.name);
  auto writer = make_shard_writer();
  const auto place = writer->begin(folder);
  try {
    std::vector<Value> parts;
    for (int rank = 0; rank < shards; ++rank)
      parts.push_back(writer->write(place, part_of_rank(copying, names, rank, shards), rank, shards));
    writer->commit(place, folder, parts);
  } catch (...) {
    writer->discard(place);
    throw;
  }
  return report;
}

}  // namespace fabric::checkpoint

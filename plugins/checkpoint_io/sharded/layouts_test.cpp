// Whatever layout wrote a checkpoint, every layout reads it. Ranks are played one after another.
#include <torch/torch.h>

#include <filesystem>
#include <functional>
#include <optional>

#include <fabric/base/error.h>
#include <fabric/plugins/checkpoint_io/checkpoint_io.h>

#include "plugins/checkpoint_io/sharded/sharded_io.h"
#include "plugins/checkpoint_io/test_files.h"
#include "tests/support/catch.h"

using namespace checkpoint_test;
using Catch::Matchers::Contains;
using fabric::CheckpointError;
using fabric::Shard;
using fabric::StatePart;
using fabric::Value;

namespace {

namespace fs = std::filesystem;
using Tensors = std::vector<std::pair<std::string, at::Tensor>>;

Tensors zoo() {
  auto tied = torch::randn({6, 3});
  return {{"weight", torch::randn({7, 5})},
          {"row", torch::randn({1, 6})},
          {"column", torch::randn({5, 1}, torch::kDouble)},
          {"cube", torch::arange(4 * 6 * 3, torch::kLong).reshape({4, 6, 3})},
          {"bits", torch::randn({9}).to(torch::kBFloat16)},
          {"halves", torch::randn({3, 2}).to(torch::kHalf)},
          {"flags", torch::tensor({true, false, true, true, false})},
          {"bytes", torch::arange(11, torch::kByte)},
          {"waves", torch::randn({4, 3}, torch::kComplexFloat)},
          {"scalar", torch::tensor(2.5)},
          {"count", torch::tensor(std::int64_t{7})},
          {"empty", torch::empty({0, 4})},
          {"hollow", torch::empty({3, 0})},
          {"tied", tied},
          {"tied_again", tied}};
}

struct Layout {
  const char* name;
  int ranks;
  /// Dimension 0 in so many parts, dimension 1 in so many.
  int rows, columns;
  /// A part of dimension 0 consists of so many blocks, which lie apart.
  int strides = 1;
};

// Of one process; of ddp; of FSDP; of tensor parallelism; of both; of FSDP with replicas; of tensor parallelism over
// fused projections; of FSDP over that.
constexpr Layout kLayouts[] = {
    {"one process", 1, 1, 1},     {"replicas", 3, 1, 1},        {"rows of 2", 2, 2, 1},        {"rows of 3", 3, 3, 1},
    {"rows of 8", 8, 8, 1},       {"columns of 2", 2, 1, 2},    {"a grid", 4, 2, 2},           {"rows, twice", 4, 2, 1},
    {"strided rows", 2, 2, 1, 3}, {"strided grid", 4, 2, 2, 2}, {"strided, twice", 4, 2, 1, 2}};

/// Parts of dimension 0 of blocks that lie apart, one after another in the rank's tensor.
void use_blocks(const Layout& layout, int part, Shard& shard, std::vector<std::int64_t>& size) {
  const auto rows = shard.global_shape[0], blocks = std::int64_t{layout.rows} * layout.strides;
  const auto each = (rows + blocks - 1) / blocks;
  std::int64_t have = 0;
  for (std::int64_t i = part; i < blocks; i += layout.rows) {
    Shard::Box box{std::vector<std::int64_t>(size.size(), 0), shard.offsets, size};
    box.local_offsets[0] = have;
    box.offsets[0] = std::min(rows, i * each);
    box.sizes[0] = std::min(each, rows - box.offsets[0]);
    have += box.sizes[0];
    shard.boxes.push_back(std::move(box));
  }
  size[0] = have;
  shard.offsets.clear();
}

/// A rank's part of a tensor; nothing: it has all of it.
std::optional<Shard> box_of(const Layout& layout, int rank, const at::Tensor& tensor, std::vector<std::int64_t>& size) {
  size = tensor.sizes().vec();
  Shard shard{size, std::vector<std::int64_t>(size.size(), 0)};
  const int place[] = {rank % (layout.rows * layout.columns) / layout.columns, rank % layout.columns};
  const int parts[] = {layout.rows, layout.columns};
  bool spread = false;
  for (std::size_t d = 0; d < 2 && d < size.size(); ++d) {
    if (parts[d] == 1) continue;
    spread = true;
    const auto each = (shard.global_shape[d] + parts[d] - 1) / parts[d];  // the last ranks may have nothing
    shard.offsets[d] = std::min(shard.global_shape[d], place[d] * each);
    size[d] = std::min(each, shard.global_shape[d] - shard.offsets[d]);
  }
  if (spread && layout.strides > 1) use_blocks(layout, place[0], shard, size);
  return spread ? std::optional(shard) : std::nullopt;
}

at::Tensor cut(const at::Tensor& whole, const std::optional<Shard>& shard, const std::vector<std::int64_t>& size) {
  if (!shard) return whole;
  auto local = torch::empty(size, whole.options());
  for (const auto& [box, offsets] : fabric::local_boxes(local, *shard)) {
    auto part = box;
    fabric::read_box(whole, offsets, part);
  }
  return local;
}

/// What the rank has of a stored tensor.
at::Tensor read_part(const at::Tensor& stored, const std::optional<Shard>& shard, const std::vector<std::int64_t>& size,
                     at::ScalarType type) {
  auto local = torch::zeros(size, type);
  const Shard all{size, std::vector<std::int64_t>(size.size(), 0)};
  for (auto& [box, offsets] : fabric::local_boxes(local, shard ? *shard : all)) fabric::read_box(stored, offsets, box);
  return local;
}

StatePart part_of(const Tensors& tensors, const Layout& layout, int rank) {
  Value::Map model;
  StatePart part;
  for (const auto& [name, tensor] : tensors) {
    std::vector<std::int64_t> size;
    auto shard = box_of(layout, rank, tensor, size);
    model.append(name, cut(tensor, shard, size));
    if (shard) part.shards.emplace("model." + name, *shard);
  }
  part.values = Value::Map{{"model", std::move(model)}};
  return part;
}

/// The writers of a job's ranks, which live as long as the job.
struct Job {
  const Layout& layout;
  std::vector<std::unique_ptr<fabric::PartWriter>> writers;
  std::size_t described = 0;  // how many ranks told of their chunks in the last save
  explicit Job(const Layout& layout) : layout(layout) {
    for (int rank = 0; rank < layout.ranks; ++rank) writers.push_back(fabric::checkpoint::make_shard_writer());
  }
  void save(const fs::path& path, const std::function<StatePart(int rank)>& part, bool fail = false) {
    auto place = writers[0]->begin(path);
    std::vector<Value> parts;
    described = 0;
    for (int rank = 0; rank < layout.ranks; ++rank) {
      parts.push_back(writers[rank]->write(place, part(rank), rank, layout.ranks));
      described += parts.back().find("chunks") != nullptr;
    }
    if (fail) return writers[0]->discard(place);
    writers[0]->commit(place, path, parts);
  }
  void save(const fs::path& path, const Tensors& tensors) {
    save(path, [&](int rank) { return part_of(tensors, layout, rank); });
  }
};

void require_boxes(const fs::path& path, const Tensors& tensors, const Layout& layout) {
  auto model = fabric::make_checkpoint_io("sharded")->open(path).at("model");
  for (int rank = 0; rank < layout.ranks; ++rank)
    for (const auto& [name, tensor] : tensors) {
      std::vector<std::int64_t> size;
      auto shard = box_of(layout, rank, tensor, size);
      auto expected = cut(tensor, shard, size);
      INFO(name << ", rank " << rank);
      const auto& stored = model.at(name).as<at::Tensor>();
      CHECK(torch::equal(read_part(stored, shard, size, tensor.scalar_type()), expected));
      if (tensor.is_complex()) continue;
      CHECK(torch::equal(read_part(stored, shard, size, torch::kDouble), expected.to(torch::kDouble)));
    }
}

}  // namespace

TEST_CASE("every layout reads what every layout wrote", "[checkpoint][sharded][layouts]") {
  Folder folder;
  const auto tensors = zoo();
  for (const auto& writes : kLayouts) {
    Job(writes).save(folder / writes.name, tensors);
    for (const auto& reads : kLayouts) {
      INFO(writes.name << " to " << reads.name);
      require_boxes(folder / writes.name, tensors, reads);
    }
  }
}

TEST_CASE("ten thousand small tensors go from two ranks to three", "[checkpoint][sharded][layouts]") {
  Folder folder;
  Tensors many;
  auto numbers = torch::arange(30'000, torch::kInt).reshape({10'000, 3});
  for (int i = 0; i < 10'000; ++i) many.emplace_back("t" + std::to_string(i), numbers[i]);
  Job(kLayouts[2]).save(folder / "c", many);
  auto model = fabric::make_checkpoint_io("sharded")->open(folder / "c").at("model");
  bool same = model.as_map().size() == many.size();
  auto expected = many.begin();
  for (const auto& [name, stored] : model.as_map()) {
    for (int rank = 0; rank < 3; ++rank) {
      auto read = torch::zeros({1}, torch::kInt);
      fabric::read_box(stored.as<at::Tensor>(), {rank}, read);
      same = same && name == expected->first &&
             read.const_data_ptr<int>()[0] == expected->second.const_data_ptr<int>()[rank];
    }
    ++expected;
  }
  CHECK(same);
}

TEST_CASE("who writes what is told again only where it has changed", "[checkpoint][sharded][layouts]") {
  Folder folder;
  const auto& layout = kLayouts[3];
  Job job(layout);
  auto tensors = zoo();
  job.save(folder / "c", tensors);
  CHECK(job.described == 3);
  for (auto& [name, tensor] : tensors) tensor = tensor.clone().zero_();
  job.save(folder / "c", tensors);
  CHECK(job.described == 0);
  require_boxes(folder / "c", tensors, layout);

  tensors.emplace_back("new", torch::randn({4, 4}));
  job.save(folder / "c", tensors);
  CHECK(job.described == 3);
  require_boxes(folder / "c", tensors, layout);

  // A save that failed: rank 0 does not know what the others told it.
  tensors.emplace_back("newer", torch::randn({2, 3}));
  auto part = [&](int rank) { return part_of(tensors, layout, rank); };
  job.save(folder / "c", part, true);
  job.save(folder / "c", part);
  CHECK(job.described == 3);
  require_boxes(folder / "c", tensors, layout);

  // One rank alone holds something else: an error, and afterwards all are asked.
  CHECK_THROWS_WITH(job.save(folder / "c",
                             [&](int rank) {
                               auto others = tensors;
                               if (rank == 1) others[0].second = torch::randn({8, 5});
                               return part_of(others, layout, rank);
                             }),
                    Contains("'model.weight'") && Contains("different shapes"));
  fs::remove_all(folder / ".c.partial");
  require_boxes(folder / "c", tensors, layout);
  Job again(layout);
  again.save(folder / "c", tensors);
  again.save(folder / "c", tensors);
  CHECK(again.described == 0);
  require_boxes(folder / "c", tensors, layout);
}

// Writing a sharded checkpoint. Everything goes into a folder beside it first:
//
//   begin   rank 0 makes the folder.
//   write   each rank writes `shard-RANK-of-RANKS.safetensors`, synced.
//   commit  rank 0 checks that the shards make up whole tensors, writes `index.json`, and gives the folder the
//           checkpoint's name.
//
// So at every moment the name leads to the old checkpoint or to the new one, whole.
#include <cstdio>
#include <map>
#include <random>

#include <fabric/base/atomic_file_internal.h>
#include <fabric/base/error.h>

#include "plugins/checkpoint_io/safetensors/safetensors.h"
#include "plugins/checkpoint_io/safetensors/safetensors_header.h"
#include "plugins/checkpoint_io/sharded/save_folder.h"
#include "plugins/checkpoint_io/sharded/save_plan.h"
#include "plugins/checkpoint_io/sharded/sharded_index.h"
#include "plugins/checkpoint_io/sharded/sharded_io.h"
#include "plugins/checkpoint_io/structure.h"

namespace fabric::checkpoint {
namespace {

namespace fs = std::filesystem;

std::string random_id() {
  std::random_device random;
  char text[33];
  std::snprintf(text, sizeof text, "%08x%08x%08x%08x", random(), random(), random(), random());
  return text;
}

std::string shard_name(int rank, int world_size) {
  char text[64];
  std::snprintf(text, sizeof text, "shard-%05d-of-%05d.safetensors", rank, world_size);
  return text;
}

/// The values that all ranks have, and those of this rank alone.
struct SplitPart {
  Structure common, own;
};

SplitPart split(const StatePart& part) {
  if (part.per_rank.empty()) return {flatten(part.values), flatten(Value::Map{})};
  Value::Map common, own;
  for (const auto& [key, value] : part.values.as_map()) (part.per_rank.contains(key) ? own : common).append(key, value);
  return {flatten(common), flatten(own)};
}

class ShardWriter : public PartWriter {
 public:
  // The place that all ranks are told: folder, name of this save, name of the save that rank 0 knows the plan of.
  std::string begin(const fs::path& path) override {
    SaveFolder folder(path);
    std::string place = folder.place().string();
    folders_.erase(place);
    folders_.emplace(place, std::move(folder));
    return place + '\n' + random_id() + '\n' + planned_in_;
  }

  Value write(const std::string& given, const StatePart& part, int rank, int world_size) override {
    const Place at = parse_place(given);
    if (std::error_code error; !fs::is_directory(at.folder, error))
      shard_failure(at.folder, "the folder that rank 0 made is not there for rank " + std::to_string(rank) +
                                   ". All ranks must see the same folder; use a shared file system, or " +
                                   "checkpoint_io = \"safetensors\", which rank 0 writes alone");
    SplitPart all = split(part);
    const bool planned = plan_.update(all.common.tensors, part.shards, rank, world_size);
    const bool known = !planned && sent_in_ == at.planned_in;
    sent_in_ = at.id;
    std::vector<NamedTensor> mine;
    for (const auto& piece : plan_.mine())
      mine.push_back({piece.name, piece.of(all.common.tensors[piece.tensor].tensor)});
    const fs::path file = fs::path(at.folder) / shard_name(rank, world_size);
    const auto sums = write_shard(file, at.id, rank, mine, std::move(all.own));
    std::error_code error;
    const auto bytes = fs::file_size(file, error);
    if (error) shard_failure(file, error.message());
    std::vector<std::uint32_t> of_chunks;
    for (const auto& entry : mine) of_chunks.push_back(sums.at(entry.name));
    Value out = Value::Map{{"file", file.filename().string()}, {"bytes", bytes}, {"sums", packed_sums(of_chunks)}};
    if (!known) out["chunks"] = plan_.chunks();
    out["per_rank"] = Value::List(part.per_rank.begin(), part.per_rank.end());
    if (rank == 0) out["tree"] = write_json_for_file(all.common.tree);
    return out;
  }

  void commit(const std::string& given, const fs::path& path, const std::vector<Value>& parts) override {
    const Place at = parse_place(given);
    planned_in_.clear();  // until the plan is whole
    ShardedIndex& index = index_plan_.index_of(parts);
    planned_in_ = at.id;
    complete(index, at.id, parts);
    require_shards(at.folder, path, index);
    write_whole_file(fs::path(at.folder) / kIndexName, readable_text_of(index), as_error<CheckpointError>);
    folders_.at(at.folder).move_to(path);
    folders_.erase(at.folder);
  }

  void discard(const std::string& given) noexcept override {
    std::error_code ignored;
    const std::string folder = parse_place(given).folder;
    fs::remove_all(folder, ignored);
    folders_.erase(folder);
  }

 private:
  struct Place {
    std::string folder, id, planned_in;
  };
  static Place parse_place(const std::string& given) {
    const auto second = given.rfind('\n'), first = given.rfind('\n', second - 1);
    return {given.substr(0, first), given.substr(first + 1, second - first - 1), given.substr(second + 1)};
  }

  static std::unordered_map<std::string, std::uint32_t> write_shard(const fs::path& file, const std::string& id,
                                                                    int rank, std::vector<NamedTensor> mine,
                                                                    Structure own) {
    Tree::List names;
    for (const auto& entry : mine) names.push_back(Tree::Map{{"$tensor", entry.name}});
    Tree tree = Tree::Map{{"id", id}, {"rank", rank}, {"tensors", std::move(names)}, {"per_rank", std::move(own.tree)}};
    for (auto& entry : own.tensors) {
      for (const auto& other : mine)
        if (other.name == entry.name) throw CheckpointError("two entries of the state are called '" + entry.name + "'");
      mine.push_back(std::move(entry));
    }
    return write_safetensors_file(std::move(mine), std::move(tree), file);
  }

  static void complete(ShardedIndex& index, const std::string& id, const std::vector<Value>& parts) {
    index.id = id;
    index.per_rank.clear();
    for (const auto& key : parts[0].at("per_rank").as_list()) index.per_rank.push_back(key.as_string());
    for (std::size_t rank = 1; rank < parts.size(); ++rank) require_same_own(parts, rank);
    index.tree = read_json_of_file(parts[0].at("tree").as_string(), "the structure");
  }

  // Ranks on another machine may have written to a folder of the same name there.
  static void require_shards(const fs::path& place, const fs::path& path, const ShardedIndex& index) {
    for (std::size_t rank = 0; rank < index.files.size(); ++rank) {
      std::error_code error;
      auto bytes = fs::file_size(place / index.files[rank].name, error);
      if (error || bytes != index.files[rank].bytes)
        shard_failure(path, "what rank " + std::to_string(rank) + " wrote is not there for rank 0 ('" +
                                index.files[rank].name + "'). All ranks must see the same folder; use a shared file " +
                                "system, or checkpoint_io = \"safetensors\", which rank 0 writes alone");
    }
  }

  static void require_same_own(const std::vector<Value>& parts, std::size_t rank) {
    if (to_tree(parts[rank].at("per_rank")) == to_tree(parts[0].at("per_rank"))) return;
    throw CheckpointError("rank " + std::to_string(rank) + " has other entries of its own (PerRank) than rank 0: " +
                          to_string(parts[rank].at("per_rank")) + " and " + to_string(parts[0].at("per_rank")));
  }

  // What a reader would refuse must not take the place of a checkpoint that it takes. Each rank shares out the tensors
  // of its own tree, so that one whose tree differs leaves some that nobody wrote, or that nothing names.
  std::string readable_text_of(const ShardedIndex& index) {
    try {
      put_together(index.tree, index_plan_.shapes());
    } catch (const CheckpointCorrupt& error) {
      throw CheckpointError(std::string("the ranks do not save the same tensors: ") + error.what() +
                            ". Mark what is each rank's own with fabric::PerRank");
    }
    std::string text = index.to_json();
    if (text.size() > kMaxHeader)
      throw CheckpointError("the checkpoint's names and values need an index of " + std::to_string(text.size()) +
                            " bytes, of which " + std::to_string(kMaxHeader) +
                            " can be read again. Keep large data in tensors");
    return text;
  }

  std::map<std::string, SaveFolder> folders_;  // on rank 0, by place
  PartPlan plan_;
  std::string sent_in_;     // the save in which rank 0 was last told, or could know, what `plan_` says
  IndexPlan index_plan_;    // on rank 0
  std::string planned_in_;  // the save that it was last whole in
};

}  // namespace

std::unique_ptr<PartWriter> make_shard_writer() { return std::make_unique<ShardWriter>(); }

}  // namespace fabric::checkpoint

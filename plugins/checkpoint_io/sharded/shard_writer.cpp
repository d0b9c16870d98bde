// Writing a sharded checkpoint. Everything goes into the folder `.NAME.partial` first:
//
//   begin   rank 0 makes the folder and locks the file `lock` in it for as long as the save lasts. A folder whose lock
//   is
//           free was left by a kill and goes.
//   write   each rank writes `shard-RANK-of-RANKS.safetensors`, synced.
//   commit  rank 0 checks that the shards make up whole tensors, writes `index.json`, syncs the folder, and gives it
//   the
//           checkpoint's name. Where the name is taken, the two are exchanged in one step and the old one is removed.
//
// So at every moment the name leads to the old checkpoint or to the new one, whole.
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <random>
#include <unordered_map>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <fabric/base/atomic_file_internal.h>
#include <fabric/base/error.h>
#include <fabric/base/log.h>

#include "plugins/checkpoint_io/safetensors/safetensors.h"
#include "plugins/checkpoint_io/safetensors/safetensors_header.h"
#include "plugins/checkpoint_io/sharded/sharded_index.h"
#include "plugins/checkpoint_io/sharded/sharded_io.h"
#include "plugins/checkpoint_io/structure.h"

namespace fabric::checkpoint {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void shard_failure(const fs::path& path, const std::string& why) {
  throw CheckpointError("cannot write the checkpoint '" + path.string() + "': " + why);
}

std::string random_id() {
  std::random_device random;
  char text[33];
  std::snprintf(text, sizeof text, "%08x%08x%08x%08x", random(), random(), random(), random());
  return text;
}

fs::path partial_folder(const fs::path& path) {
  return folder_of(path) / ("." + path.filename().string() + ".partial");
}

// A link stays, and what it names is replaced.
fs::path through_link(const fs::path& path) {
  std::error_code error;
  if (!fs::is_symlink(path, error)) return path;
  auto target = fs::weakly_canonical(path, error);
  return error ? path : target;
}

std::string shard_name(int rank, int world_size) {
  char text[64];
  std::snprintf(text, sizeof text, "shard-%05d-of-%05d.safetensors", rank, world_size);
  return text;
}

/// Which rank writes a tensor that all of them have: the largest first, each to the rank with the least so far. Every
/// rank comes to the same answer.
std::unordered_map<std::string, int> share_out(const std::vector<NamedTensor>& tensors,
                                               const std::map<std::string, Shard>& shards, int world_size) {
  std::vector<const NamedTensor*> common;
  for (const auto& entry : tensors)
    if (!shards.contains(entry.name)) common.push_back(&entry);
  std::stable_sort(common.begin(), common.end(),
                   [](const auto* a, const auto* b) { return a->tensor.nbytes() > b->tensor.nbytes(); });
  std::vector<std::size_t> bytes(static_cast<std::size_t>(world_size), 0);
  std::unordered_map<std::string, int> writer;
  for (const auto* entry : common) {
    auto least = std::min_element(bytes.begin(), bytes.end());
    *least += entry->tensor.nbytes();
    writer.emplace(entry->name, static_cast<int>(least - bytes.begin()));
  }
  return writer;
}

Value int_list(at::IntArrayRef list) { return Value::List(list.begin(), list.end()); }

std::vector<std::int64_t> int_vector(const Value& list) {
  std::vector<std::int64_t> out;
  for (const auto& item : list.as_list()) out.push_back(item.as_int());
  return out;
}

// A tensor without elements is written once, as its name and shape have to be somewhere.
bool is_empty(const Shard& shard, int rank) {
  return rank == 0 && std::find(shard.global_shape.begin(), shard.global_shape.end(), 0) != shard.global_shape.end();
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
  ~ShardWriter() override {
    for (const auto& [place, fd] : locks_) close(fd);
  }

  std::string begin(const fs::path& path) override {
    require_replaceable(path);
    if (auto error = make_folders(folder_of(through_link(path))))
      shard_failure(path, "its folder cannot be made: " + error.message());
    const fs::path place = partial_folder(through_link(path));
    if (mkdir(place.c_str(), 0777) != 0) {
      if (errno != EEXIST) shard_failure(path, "'" + place.string() + "' cannot be made: " + std::strerror(errno));
      remove_left_folder(place, path);
      if (mkdir(place.c_str(), 0777) != 0)
        shard_failure(path, "'" + place.string() + "' cannot be made: " + std::strerror(errno));
    }
    locks_[place.string()] = claim(place, path);
    return place.string() + '\n' + random_id();
  }

  Value write(const std::string& given, const StatePart& part, int rank, int world_size) override {
    auto [place, id] = parse_place(given);
    if (std::error_code error; !fs::is_directory(place, error))
      shard_failure(place, "the folder that rank 0 made is not there for rank " + std::to_string(rank) +
                               ". All ranks must see the same folder; use a shared file system, or checkpoint_io = "
                               "\"safetensors\", which rank 0 writes alone");
    SplitPart all = split(part);
    auto writer = share_out(all.common.tensors, part.shards, world_size);
    std::vector<NamedTensor> mine;
    std::vector<Value::List> described;
    for (auto& [name, tensor] : all.common.tensors) {
      auto shard = part.shards.find(name);
      bool here =
          shard == part.shards.end() ? writer.at(name) == rank : tensor.numel() > 0 || is_empty(shard->second, rank);
      if (!here) continue;
      described.push_back(describe(name, tensor, shard == part.shards.end() ? nullptr : &shard->second));
      mine.push_back({name, tensor});
    }
    const fs::path file = fs::path(place) / shard_name(rank, world_size);
    auto sums = write_shard(file, id, rank, std::move(mine), std::move(all.own));
    std::error_code error;
    const auto bytes = fs::file_size(file, error);
    if (error) shard_failure(file, error.message());
    Value::List chunks;
    for (auto& item : described) {
      item.push_back(static_cast<std::int64_t>(sums.at(item[0].as_string())));
      chunks.push_back(std::move(item));
    }
    Value out = Value::Map{{"file", file.filename().string()}, {"bytes", bytes}, {"chunks", std::move(chunks)}};
    out["per_rank"] = Value::List(part.per_rank.begin(), part.per_rank.end());
    if (rank == 0) out["tree"] = write_json_for_file(all.common.tree);
    return out;
  }

  void commit(const std::string& given, const fs::path& path, const std::vector<Value>& parts) override {
    auto [place, id] = parse_place(given);
    ShardedIndex index = make_index(id, parts);
    require_shards(place, path, index);
    write_whole_file(fs::path(place) / kIndexName, readable_text_of(index), as_error<CheckpointError>);
    if (auto error = sync_path(place)) shard_failure(path, "'" + place + "' cannot be synced: " + error.message());
    move_into_place(place, through_link(path));
    // Not before: the lock is what tells that the folder is no killed save's.
    std::error_code ignored;
    fs::remove(path / "lock", ignored);
    unlock(place);
  }

  void discard(const std::string& given) noexcept override {
    std::error_code ignored;
    const std::string place = given.substr(0, given.rfind('\n'));
    fs::remove_all(place, ignored);
    unlock(place);
  }

 private:
  static std::pair<std::string, std::string> parse_place(const std::string& given) {
    auto at = given.rfind('\n');
    return {given.substr(0, at), given.substr(at + 1)};
  }

  void unlock(const std::string& place) noexcept {
    auto found = locks_.find(place);
    if (found == locks_.end()) return;
    close(found->second);
    locks_.erase(found);
  }

  // What a name may lead to that a checkpoint is to have: nothing, a file, or a checkpoint.
  static void require_replaceable(const fs::path& path) {
    if (!path.has_filename()) shard_failure(path, "it names no folder");
    std::error_code error;
    auto found = fs::status(path, error);
    if (!fs::exists(found) || fs::is_regular_file(found) || looks_sharded(path)) return;
    if (fs::is_directory(found) && fs::is_empty(path, error)) return;
    shard_failure(path, fs::is_directory(found) ? "it is a folder that holds something other than a checkpoint"
                                                : "it exists and is neither a file nor a folder");
  }

  // The folder is ours once the lock in it is, and still has its name: until then another save may take the folder for
  // a killed one's.
  static int claim(const fs::path& place, const fs::path& path) {
    const fs::path lock = place / "lock";
    int fd = open(lock.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0 && errno != EEXIST && errno != ENOENT)
      shard_failure(path, std::string("its lock cannot be made: ") + std::strerror(errno));
    struct stat ours = {}, named = {};
    const bool is_ours = fd >= 0 && (flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) &&
                         fstat(fd, &ours) == 0 && lstat(lock.c_str(), &named) == 0 && ours.st_ino == named.st_ino &&
                         ours.st_dev == named.st_dev;
    if (is_ours) return fd;
    if (fd >= 0) close(fd);
    shard_failure(path, "another process is saving there");
  }

  // While it is removed the lock is ours, made where it was missing: whoever begins there meanwhile finds it taken.
  static void remove_left_folder(const fs::path& place, const fs::path& path) {
    int fd = open((place / "lock").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
    bool busy = fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    std::error_code error;
    if (!busy) fs::remove_all(place, error);
    if (fd >= 0) close(fd);
    if (busy) shard_failure(path, "another process is saving there");
    if (error)
      shard_failure(path, "what a killed save left in '" + place.string() + "' cannot be removed: " + error.message());
  }

  // A complex tensor is stored as pairs of reals, so that its last dimension is one more.
  static Value::List describe(const std::string& name, const at::Tensor& tensor, const Shard* shard) {
    std::vector<std::int64_t> global = tensor.sizes().vec(), offsets(global.size(), 0);
    if (shard) {
      std::copy(shard->global_shape.begin(), shard->global_shape.end(), global.begin());
      std::copy(shard->offsets.begin(), shard->offsets.end(), offsets.begin());
    }
    return Value::List{name, std::string(*safetensors_name(tensor.scalar_type())), int_list(global), int_list(offsets),
                       int_list(tensor.sizes())};
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

  static ShardedIndex make_index(const std::string& id, const std::vector<Value>& parts) {
    ShardedIndex index;
    index.id = id;
    std::map<std::string, std::size_t> known;
    for (std::size_t rank = 0; rank < parts.size(); ++rank) {
      index.files.push_back(
          {parts[rank].at("file").as_string(), static_cast<std::uint64_t>(parts[rank].at("bytes").as_int())});
      for (const auto& item : parts[rank].at("chunks").as_list()) add_chunk(index, known, rank, item.as_list());
    }
    for (const auto& key : parts[0].at("per_rank").as_list()) index.per_rank.push_back(key.as_string());
    for (std::size_t rank = 1; rank < parts.size(); ++rank) require_same_own(parts, rank);
    index.tree = read_json_of_file(parts[0].at("tree").as_string(), "the structure");
    for (const auto& entry : index.tensors)
      if (auto why = why_not_whole(entry.shape, entry.chunks); !why.empty())
        throw CheckpointError("'" + entry.name + "' cannot be put together from the parts that the ranks hold: " + why);
    return index;
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
  static std::string readable_text_of(const ShardedIndex& index) {
    std::unordered_map<std::string, at::Tensor> shapes;
    for (const auto& entry : index.tensors)
      shapes.emplace(entry.name, at::empty(entry.shape, at::TensorOptions(entry.type).device(c10::kMeta)));
    try {
      put_together(index.tree, shapes);
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

  static void add_chunk(ShardedIndex& index, std::map<std::string, std::size_t>& known, std::size_t rank,
                        const Value::List& item) {
    const auto& name = item[0].as_string();
    auto shape = int_vector(item[2]);
    auto type = *safetensors_type(item[1].as_string());
    auto [at, fresh] = known.emplace(name, index.tensors.size());
    if (fresh) index.tensors.push_back({name, type, shape, {}});
    auto& entry = index.tensors[at->second];
    if (entry.shape != shape || entry.type != type)
      throw CheckpointError("the ranks know '" + name + "' with different shapes or types");
    StoredChunk chunk{rank, int_vector(item[3]), int_vector(item[4]), static_cast<std::uint32_t>(item[5].as_int())};
    for (const auto& other : entry.chunks)
      if (other.offsets == chunk.offsets && other.shape == chunk.shape) return;  // a replica
    entry.chunks.push_back(std::move(chunk));
  }

  static void move_into_place(const fs::path& place, const fs::path& path) {
    std::error_code error, ignored;
    const fs::path aside = replaced_sharded(path);
    const bool taken = fs::exists(fs::symlink_status(path, ignored));
    // Of a kill; its successor has the name. Where nothing has it, it is the only whole one until the end.
    if (taken) fs::remove_all(aside, ignored);
    if (taken && exchange(place, path)) return;
    if (taken) fs::rename(path, aside, error);
    if (!error) {
      fs::rename(place, path, error);
      if (error && taken) fs::rename(aside, path, ignored);
    }
    if (error) shard_failure(path, "'" + place.string() + "' cannot be moved into place: " + error.message());
    sync_after_move(path);
    fs::remove_all(aside, ignored);
  }

  // False where names cannot be exchanged. Afterwards the old one has the name of a save at work, and so that no other
  // save begins there while it is removed, it has a lock that is held.
  static bool exchange(const fs::path& place, const fs::path& path) {
    struct Lock {
      int fd;
      ~Lock() {
        if (fd >= 0) close(fd);
      }
    } lock{open((path / "lock").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666)};
    if (lock.fd >= 0) flock(lock.fd, LOCK_EX | LOCK_NB);
    if (renameat2(AT_FDCWD, place.c_str(), AT_FDCWD, path.c_str(), RENAME_EXCHANGE) != 0) return false;
    sync_after_move(path);
    std::error_code ignored;
    if (lock.fd >= 0)
      fs::remove_all(place, ignored);
    else if (unlink(place.c_str()) != 0 && errno == EISDIR)  // a file, or a folder that takes no lock
      fs::remove_all(place, ignored);
    return true;
  }

  static void sync_after_move(const fs::path& path) {
    if (auto error = sync_path(folder_of(path)))
      throw CheckpointError(
          "the new checkpoint '" + path.string() +
          "' is in place, but its folder cannot be synced, so that a power failure may undo it: " + error.message());
  }

  std::map<std::string, int> locks_;  // by place
};

}  // namespace

std::unique_ptr<PartWriter> make_shard_writer() { return std::make_unique<ShardWriter>(); }

}  // namespace fabric::checkpoint

// The index of a checkpoint of Python's torch.distributed.checkpoint: a pickle of these objects (torch's
// distributed/checkpoint/metadata.py and filesystem.py):
//
//   Metadata             state_dict_metadata: {name: TensorStorageMetadata | BytesStorageMetadata},
//                        planner_data: {name: path}, storage_data: {MetadataIndex: _StorageInfo}
//   TensorStorageMetadata   properties: TensorProperties, size, chunks: [ChunkStorageMetadata]
//   TensorProperties        a tuple that begins with the type
//   ChunkStorageMetadata    offsets, sizes
//   MetadataIndex           fqn, offset (none for what is no tensor)
//   _StorageInfo            relative_path, offset, length, transform_descriptors
//
// Invariant: an entry that is returned has a place for each of its boxes, the boxes fill its shape, and no two places
// share bytes, so that tensors are no larger in all than the files.
#include "plugins/checkpoint_io/dcp/dcp_metadata.h"

#include <algorithm>
#include <tuple>
#include <unordered_map>
#include <unordered_set>

#include <fabric/base/error.h>

#include "plugins/checkpoint_io/dcp/dcp_records.h"
#include "plugins/checkpoint_io/names.h"
#include "plugins/checkpoint_io/sharded/sharded_index.h"
#include "plugins/checkpoint_io/tensor_bytes.h"
#include "plugins/checkpoint_io/torch/torch_host.h"

namespace fabric::checkpoint {
namespace {

constexpr std::size_t kDeepestPath = 60;

std::string box_key(const std::string& name, const std::vector<std::int64_t>& offsets) {
  std::string key = name + '\0';
  for (auto offset : offsets) key += std::to_string(offset) + ',';
  return key;
}

// Piece by piece: GCC 12 warns falsely of the sum of a literal and a string.
std::string quoted_name(const std::string& name) {
  std::string quoted = "'";
  quoted.append(name, 0, kShownName);
  return quoted += '\'';
}

class MetadataReader : Records {
 public:
  explicit MetadataReader(std::string_view bytes) : Records(bytes) {}

  std::vector<DcpEntry> read() {
    require_record(root(), "Metadata");
    read_places();
    read_paths();
    std::vector<DcpEntry> out;
    std::unordered_set<std::string> seen;
    const Node& entries = dict(attribute(root(), "state_dict_metadata"), "state_dict_metadata");
    for (std::size_t i = 0; i + 1 < entries.items.size(); i += 2) {
      out.push_back(entry(text(entries.items[i], "a name"), entries.items[i + 1]));
      if (!seen.insert(out.back().name).second) wrong_metadata("has " + quoted_name(out.back().name) + " twice");
    }
    require_places_of_their_own(out);
    return out;
  }

 private:
  void read_places() {
    const Node& places = dict(attribute(root(), "storage_data"), "storage_data");
    for (std::size_t i = 0; i + 1 < places.items.size(); i += 2) {
      const Id index = places.items[i], info = places.items[i + 1];
      require_record(index, "MetadataIndex");
      require_record(info, "_StorageInfo");
      const std::string name = text(attribute(index, "fqn"), "a name");
      auto offset = find(index, "offset");
      const bool boxed = offset && node(*offset).kind != Kind::none;
      auto key = boxed ? box_key(name, sizes(*offset, "offset")) : name;
      if (!places_.emplace(std::move(key), place(name, info)).second)
        wrong_metadata("has two places for one part of " + quoted_name(name));
    }
  }
  DcpPlace place(const std::string& name, Id info) const {
    DcpPlace out{text(attribute(info, "relative_path"), "a file's name"),
                 static_cast<std::uint64_t>(number(attribute(info, "offset"), "an offset")),
                 static_cast<std::uint64_t>(number(attribute(info, "length"), "a length"))};
    if (!is_plain_name(out.file))
      wrong_metadata("puts " + quoted_name(name) + " into " + quoted_name(out.file) +
                     ", which is no plain name of a file in its folder");
    auto transforms = find(info, "transform_descriptors");
    if (transforms && !node(*transforms).items.empty())
      throw CheckpointError("the part of " + quoted_name(name) +
                            " was changed by an extension when it was written (compressed, perhaps); save it without");
    return out;
  }

  // Where each name came from in the nested dicts and lists that were saved; older versions do not tell.
  void read_paths() {
    auto planner = find(root(), "planner_data");
    if (!planner || node(*planner).kind != Kind::dict) return;
    const auto& items = node(*planner).items;
    for (std::size_t i = 0; i + 1 < items.size(); i += 2)
      if (node(items[i]).kind == Kind::text) paths_.emplace(node(items[i]).text, items[i + 1]);
  }
  std::vector<DcpStep> path_of(const std::string& name) const {
    auto found = paths_.find(name);
    if (found == paths_.end()) return {{name, std::nullopt}};
    const Node& path = node(found->second);
    if (path.kind != Kind::tuple || path.items.empty() || path.items.size() > kDeepestPath)
      wrong_metadata("has no usable path for " + quoted_name(name));
    std::vector<DcpStep> out;
    for (Id step : path.items)
      out.push_back(node(step).kind == Kind::integer ? DcpStep{"", number(step, "a step of a path")}
                                                     : DcpStep{text(step, "a step of a path"), std::nullopt});
    return out;
  }

  DcpEntry entry(std::string name, Id storage) const {
    DcpEntry out{std::move(name), {}, {}, {}, {}};
    out.path = path_of(out.name);
    if (node(storage).text.ends_with(".BytesStorageMetadata")) {
      require_record(storage, "BytesStorageMetadata");
      out.chunks.push_back({{}, {}, place_of(out.name, out.name)});
      return out;
    }
    require_record(storage, "TensorStorageMetadata");
    out.type = type_of(out.name, attribute(storage, "properties"));
    out.shape = sizes(attribute(storage, "size"), "size");
    if (!checked_bytes(out.shape, c10::elementSize(*out.type)))
      wrong_metadata("gives " + quoted_name(out.name) + " an impossible shape");
    read_chunks(out, attribute(storage, "chunks"));
    return out;
  }
  c10::ScalarType type_of(const std::string& name, Id properties) const {
    require_record(properties, "TensorProperties");
    const Node& record = node(properties);
    const Node* state = record.items.empty() ? nullptr : &node(record.items[0]);
    if (state && state->kind == Kind::tuple && !state->items.empty() && node(state->items[0]).kind == Kind::global)
      if (auto type = torch_dtype(node(state->items[0]).text)) return *type;
    throw CheckpointError("its .metadata gives " + quoted_name(name) + " a type that is not read");
  }
  void read_chunks(DcpEntry& entry, Id chunks) const {
    std::vector<StoredChunk> boxes;
    if (node(chunks).kind != Kind::list) wrong_metadata("has no list of chunks for " + quoted_name(entry.name));
    for (Id chunk : node(chunks).items) {
      require_record(chunk, "ChunkStorageMetadata");
      boxes.push_back({0, ChunkDims(sizes(attribute(chunk, "offsets"), "offsets")),
                       ChunkDims(sizes(attribute(chunk, "sizes"), "sizes"))});
    }
    if (auto why = why_not_whole(entry.shape, boxes); !why.empty())
      wrong_metadata("does not describe " + quoted_name(entry.name) + " as a whole: " + why);
    for (auto& box : boxes) {
      auto place = place_of(box_key(entry.name, at::IntArrayRef(box.offsets).vec()), entry.name);
      // torch.save writes all elements: what is shorter cannot hold the box.
      if (*checked_bytes(at::IntArrayRef(box.shape).vec(), c10::elementSize(*entry.type)) > place.length)
        wrong_metadata("gives a part of " + quoted_name(entry.name) + " fewer bytes than its shape has");
      entry.chunks.push_back({at::IntArrayRef(box.offsets).vec(), at::IntArrayRef(box.shape).vec(), std::move(place)});
    }
  }
  const DcpPlace& place_of(const std::string& key, const std::string& name) const {
    auto found = places_.find(key);
    if (found == places_.end()) wrong_metadata("does not say where a part of " + quoted_name(name) + " lies");
    return found->second;
  }

  // Boxes without elements may be the same part of one tensor.
  static void require_places_of_their_own(const std::vector<DcpEntry>& entries) {
    std::vector<std::pair<const DcpPlace*, const DcpEntry*>> all;
    for (const auto& entry : entries)
      for (const auto& chunk : entry.chunks) all.emplace_back(&chunk.place, &entry);
    std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) {
      return std::tie(a.first->file, a.first->offset) < std::tie(b.first->file, b.first->offset);
    });
    for (std::size_t i = 1; i < all.size(); ++i) {
      const auto &before = all[i - 1], &here = all[i];
      const bool same = before.second == here.second && *before.first == *here.first;
      if (!same && before.first->file == here.first->file &&
          before.first->length > here.first->offset - before.first->offset)
        wrong_metadata("has " + quoted_name(before.second->name) + " and " + quoted_name(here.second->name) +
                       " share bytes of " + quoted_name(here.first->file) +
                       // So does the index of files that hold one safetensors file each instead of archives.
                       (here.first->offset == 0 ? ". What was written with SerializationFormat.SAFETENSORS is not read "
                                                  "as a folder; load the files in it, which are safetensors files"
                                                : ""));
    }
  }

  std::unordered_map<std::string, DcpPlace> places_;
  std::unordered_map<std::string, Id> paths_;
};

}  // namespace

std::vector<DcpEntry> parse_dcp_metadata(std::string_view pickle) {
  if (pickle.size() > kMostPickleBytes) throw CheckpointError("its .metadata has more than 64 MiB");
  return MetadataReader(pickle).read();
}

}  // namespace fabric::checkpoint

// The objects in the pickle of `.metadata`. Invariant: nothing is called and no class is looked up. An object is a
// record: the name of its class, out of this list, and the node of its attributes.
#include "plugins/checkpoint_io/dcp/dcp_records.h"

#include <algorithm>
#include <array>

#include <fabric/base/error.h>

#include "plugins/checkpoint_io/names.h"
#include "plugins/checkpoint_io/torch/torch_host.h"

namespace fabric::checkpoint {
namespace {

constexpr std::size_t kMostNumbers = 64;

constexpr std::array<std::string_view, 9> kRecords{"torch.distributed.checkpoint.metadata.Metadata",
                                                   "torch.distributed.checkpoint.metadata.TensorStorageMetadata",
                                                   "torch.distributed.checkpoint.metadata.TensorProperties",
                                                   "torch.distributed.checkpoint.metadata.ChunkStorageMetadata",
                                                   "torch.distributed.checkpoint.metadata.BytesStorageMetadata",
                                                   "torch.distributed.checkpoint.metadata.MetadataIndex",
                                                   "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING",
                                                   "torch.distributed.checkpoint.metadata.StorageMeta",
                                                   "torch.distributed.checkpoint.filesystem._StorageInfo"};

const std::string_view* record_class(std::string_view name) {
  const auto* found = std::find(kRecords.begin(), kRecords.end(), name);
  return found == kRecords.end() ? nullptr : found;
}

}  // namespace

void wrong_metadata(const std::string& why) { throw CheckpointCorrupt("its .metadata " + why); }

bool RecordHost::allows(const std::string& name) {
  return record_class(name) || name == "torch.Size" || name == "torch.serialization._get_layout" || torch_dtype(name);
}

PickleHost::Id RecordHost::call(PickleReader& pickle, const std::string& name, Id arguments) {
  if (const auto* known = record_class(name)) return pickle.add({.kind = PickleReader::Kind::record, .text = *known});
  const auto given = pickle[arguments].items;
  if (auto plain = call_for_plain_value(pickle, name, given)) return *plain;
  wrong_metadata("calls '" + name + "', which is no function");
}

PickleHost::Id RecordHost::persistent(PickleReader&, Id) { wrong_metadata("refers to something outside of it"); }

void Records::require_record(Id id, std::string_view name) const {
  const Node& node = pickle_[id];
  if (node.kind == Kind::record && node.text.ends_with("." + std::string(name))) return;
  if (node.kind == Kind::foreign)
    throw CheckpointError("its .metadata holds a Python object '" + std::string(node.text.substr(0, kShownName)) +
                          "' where a " + std::string(name) + " belongs");
  wrong_metadata("has something other than a " + std::string(name) + " where one belongs");
}

std::optional<Records::Id> Records::find(Id record, std::string_view name) const {
  const Node& node = pickle_[record];
  if (node.items.empty()) return std::nullopt;
  const Node& attributes = pickle_[node.items[0]];
  for (std::size_t i = 0; attributes.kind == Kind::dict && i + 1 < attributes.items.size(); i += 2)
    if (pickle_[attributes.items[i]].kind == Kind::text && pickle_[attributes.items[i]].text == name)
      return attributes.items[i + 1];
  return std::nullopt;
}

Records::Id Records::attribute(Id record, const char* name) const {
  auto found = find(record, name);
  if (!found) wrong_metadata(std::string("has an object without '") + name + "'");
  return *found;
}

const Records::Node& Records::dict(Id id, const char* what) const {
  if (pickle_[id].kind != Kind::dict) wrong_metadata(std::string("has no dict as '") + what + "'");
  return pickle_[id];
}

std::string Records::text(Id id, const char* what) const {
  if (pickle_[id].kind != Kind::text) wrong_metadata(std::string("has something other than text as ") + what);
  return std::string(pickle_[id].text);
}

std::int64_t Records::number(Id id, const char* what) const {
  if (pickle_[id].kind != Kind::integer || pickle_[id].integer < 0)
    wrong_metadata(std::string("has something other than a whole number from 0 as ") + what);
  return pickle_[id].integer;
}

std::vector<std::int64_t> Records::sizes(Id id, const char* what) const {
  const Node& node = pickle_[id];
  if ((node.kind != Kind::list && node.kind != Kind::tuple) || node.items.size() > kMostNumbers)
    wrong_metadata(std::string("has no list of numbers as '") + what + "'");
  std::vector<std::int64_t> out;
  for (Id item : node.items) out.push_back(number(item, what));
  return out;
}

}  // namespace fabric::checkpoint

// PyTorch's format from before 1.6, as torch/serialization.py reads it in _legacy_load: no archive, but pickles one
// after another, and behind them the storages:
//
//   a number that marks the format, its version (1001), what the machine was like, the saved object,
//   the keys of the storages in order, then for each key its number of elements (64 bits) and its bytes.
//
// How large an element is only the saved object says, and where the storages begin only its end does. So the object is
// read twice: at first for these two alone.
#include "plugins/checkpoint_io/torch/torch_legacy.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>

#include <fabric/base/error.h>

#include "plugins/checkpoint_io/byte_cursor.h"
#include "plugins/checkpoint_io/torch/pickle_reader.h"
#include "plugins/checkpoint_io/torch/torch_host.h"
#include "plugins/checkpoint_io/torch/torch_values.h"

namespace fabric::checkpoint {
namespace {

using Id = PickleReader::Id;
using Kind = PickleReader::Kind;
using Node = PickleReader::Node;

// The number 0x1950a86a20f9469cfc6c, pickled, and the end of that pickle.
constexpr std::string_view kMagic("\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", 13);
constexpr std::size_t kLongestStart = 16;  // what stands before it: the protocol, and a frame of protocol 4
constexpr std::int64_t kLegacyVersion = 1001;

/// For pickles of plain data, and for a first look at others: calls nothing, and notes which storages there are.
class Scout : public PickleHost {
 public:
  bool allows(const std::string& name) override { return is_torch_storage(name); }
  Id call(PickleReader& pickle, const std::string& name, Id) override {
    return pickle.add({.kind = Kind::foreign, .text = pickle.keep(name)});
  }
  Id persistent(PickleReader& pickle, Id id) override {
    const Node& tuple = pickle[id];
    if (tuple.items.size() >= 3 && pickle[tuple.items[1]].kind == Kind::global) {
      auto type = torch_storage_type(pickle[tuple.items[1]].text);
      element_sizes.emplace(pickle[tuple.items[2]].text, type ? c10::elementSize(*type) : 1);
    }
    return pickle.add({.kind = Kind::foreign});
  }
  std::unordered_map<std::string, std::uint64_t> element_sizes;
};

class LegacyStorages : public StorageBytes {
 public:
  Place find(const std::string& key) const override {
    auto found = places.find(key);
    if (found == places.end())
      throw CheckpointCorrupt("the file lacks the data of storage '" + key.substr(0, 40) + "'");
    return found->second;
  }
  std::unordered_map<std::string, Place> places;
};

class LegacyReader {
 public:
  LegacyReader(std::shared_ptr<MappedFile> file, std::size_t start) : file_(std::move(file)), at_(start) {}

  CheckpointPart read(const std::string& key, bool whole) {
    read_preamble();
    const std::size_t object = at_;
    Scout scout;
    at_ += read_pickle(scout).length();
    find_storages(scout);
    file_->populate();
    TorchHost host(file_, storages_, !whole);
    at_ = object;
    PickleReader pickle(rest(), host);
    Id root = pickle.read();
    return values_of(pickle, host, root, key, whole);
  }

 private:
  std::string_view rest() const { return file_->text(at_, std::min(file_->size() - at_, kMostPickleBytes)); }

  PickleReader read_pickle(PickleHost& host, Id* root = nullptr) const {
    PickleReader pickle(rest(), host);
    Id found = pickle.read();
    if (root) *root = found;
    return pickle;
  }

  void read_preamble() {
    Scout host;
    Id root = 0;
    PickleReader version = read_pickle(host, &root);
    if (version[root].kind != Kind::integer || version[root].integer != kLegacyVersion)
      throw CheckpointError("its format has a version that is not known; PyTorch before 1.6 wrote version 1001");
    at_ += version.length();
    PickleReader machine = read_pickle(host, &root);
    const auto& items = machine[root].items;
    for (std::size_t i = 0; machine[root].kind == Kind::dict && i + 1 < items.size(); i += 2)
      if (machine[items[i]].text == "little_endian" && !machine[items[i + 1]].integer)
        throw CheckpointError("its numbers are in big-endian order, not little");
    at_ += machine.length();
  }

  void find_storages(Scout& scout) {
    Id root = 0;
    PickleReader keys = read_pickle(scout, &root);
    if (keys[root].kind != Kind::list) wrong_pickle("has no list of its storages");
    ByteCursor cursor(file_->text(0, file_->size()), "the file");
    cursor.take(at_ + keys.length());
    for (Id id : keys[root].items) {
      std::string key(keys[id].text);
      auto element = scout.element_sizes.find(key);
      if (element == scout.element_sizes.end()) wrong_pickle("lists a storage that nothing uses");
      auto count = cursor.number<std::uint64_t>();
      if (count > cursor.left() / element->second)
        throw CheckpointCorrupt("the storage '" + key.substr(0, 40) + "' should have " + std::to_string(count) +
                                " elements, but the file ends before that: it is truncated");
      auto* data = file_->data() + cursor.position();
      cursor.take(count * element->second);
      storages_.places.emplace(std::move(key), StorageBytes::Place{data, count * element->second});
    }
  }

  std::shared_ptr<MappedFile> file_;
  std::size_t at_;
  LegacyStorages storages_;
};

std::size_t end_of_magic(const MappedFile& file) {
  const auto start = file.text(0, std::min(file.size(), kLongestStart + kMagic.size()));
  const auto found = start.starts_with('\x80') ? start.find(kMagic) : start.npos;
  return found == start.npos ? 0 : found + kMagic.size();
}

}  // namespace

bool looks_like_legacy_torch(const MappedFile& file) { return end_of_magic(file) > 0; }

CheckpointPart read_legacy_torch(const std::shared_ptr<MappedFile>& file, const std::string& key, bool whole) {
  return LegacyReader(file, end_of_magic(*file)).read(key, whole);
}

}  // namespace fabric::checkpoint

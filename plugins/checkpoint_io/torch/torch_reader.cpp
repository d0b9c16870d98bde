#include "plugins/checkpoint_io/torch/torch_reader.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <unordered_map>
#include <unordered_set>

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <fabric/base/error.h>

#include "plugins/checkpoint_io/tensor_bytes.h"
#include "plugins/checkpoint_io/torch/pickle_reader.h"
#include "plugins/checkpoint_io/torch/torch_types.h"
#include "plugins/checkpoint_io/torch/zip_reader.h"

namespace fabric::checkpoint {
namespace {

using Id = PickleReader::Id;
using Kind = PickleReader::Kind;
using Node = PickleReader::Node;

constexpr int kMaxDepth = 60;  // as deep as this library's own format goes
// Lists and texts that are shared inside the pickle are copied in the result; a small file must not become a huge tree.
constexpr std::size_t kMaxValues = std::size_t{1} << 20, kValuesPerByte = 8;
constexpr std::size_t kMaxText = std::size_t{16} << 20, kTextPerByte = 64, kMostText = std::size_t{512} << 20;
// Expanded tensors name the same bytes many times over: copies of all of them must not take memory without bound.
constexpr std::uint64_t kMaxExpanded = std::uint64_t{64} << 20, kExpandedPerByte = 16;
constexpr std::size_t kMaxDimensions = 64, kMaxArguments = 16;
constexpr std::uintptr_t kAlignment = 16;

[[noreturn]] void wrong_pickle(const std::string& why) {
  throw CheckpointCorrupt("the pickled part of the file " + why);
}

std::optional<std::string_view> after(std::string_view name, std::string_view prefix) {
  if (!name.starts_with(prefix)) return std::nullopt;
  return name.substr(prefix.size());
}

std::optional<c10::ScalarType> type_by(std::string_view TorchType::*field, std::string_view name) {
  for (const auto& known : kTorchTypes)
    if (known.*field == name && !name.empty()) return known.type;
  return std::nullopt;
}

/// The calls that rebuild what torch.save took apart.
class TorchHost : public PickleHost {
 public:
  TorchHost(const ZipReader& archive, std::string prefix)
      : archive_(archive),
        prefix_(std::move(prefix)),
        expanded_left_(std::max(kMaxExpanded, kExpandedPerByte * archive.file()->size())) {}

  void require_allowed(const std::string& name) override {
    static const std::unordered_set<std::string> allowed{"collections.OrderedDict",
                                                         "collections.Counter",
                                                         "torch._utils._rebuild_tensor_v2",
                                                         "torch._utils._rebuild_tensor_v3",
                                                         "torch._utils._rebuild_parameter",
                                                         "torch._utils._rebuild_parameter_with_state",
                                                         "torch._tensor._rebuild_from_type_v2",
                                                         "torch.Tensor",
                                                         "torch.nn.parameter.Parameter",
                                                         "torch.Size",
                                                         "torch.device",
                                                         "torch.storage.UntypedStorage",
                                                         "_codecs.encode",
                                                         "builtins.set",
                                                         "__builtin__.set",
                                                         "builtins.frozenset",
                                                         "builtins.bytearray"};
    if (allowed.contains(name) || dtype(name) || storage_type(name)) return;
    throw CheckpointError(
        "the file holds a Python object '" + name.substr(0, 200) +
        "'; only Python can rebuild it, by running code. Save a plain state dict of tensors, numbers, "
        "strings, lists and dicts instead");
  }

  Id call(PickleReader& pickle, const std::string& name, Id arguments) override {
    if (pickle[arguments].items.size() > kMaxArguments) wrong_pickle("calls '" + name + "' with too many arguments");
    const auto args = pickle[arguments].items;
    auto need = [&](std::size_t least) {
      if (args.size() < least) wrong_pickle("calls '" + name + "' with too few arguments");
    };
    if (name == "collections.OrderedDict" || name == "collections.Counter") return dict(pickle, args);
    if (name == "torch.Size" || name == "builtins.set" || name == "__builtin__.set" || name == "builtins.frozenset")
      return list(pickle, args);
    if (name == "torch._utils._rebuild_tensor_v2") return need(4), tensor(pickle, args, std::nullopt);
    if (name == "torch._utils._rebuild_tensor_v3") return need(7), tensor(pickle, args, dtype(pickle[args[6]].text));
    if (name == "torch._utils._rebuild_parameter" || name == "torch._utils._rebuild_parameter_with_state")
      return need(1), same_tensor(pickle, args[0]);
    if (name == "torch._tensor._rebuild_from_type_v2") return need(3), subclass(pickle, args);
    if (name == "torch.device") return device(pickle, args);
    if (name == "_codecs.encode" || name == "builtins.bytearray") return need(1), bytes(pickle, args);
    wrong_pickle("calls '" + name + "', which is no function");
  }

  Id persistent(PickleReader& pickle, Id id) override {
    const Node& tuple = pickle[id];
    if (tuple.kind != Kind::tuple || tuple.items.size() < 5 || pickle[tuple.items[0]].text != "storage")
      wrong_pickle("refers to something that is no storage");
    const Node &type = pickle[tuple.items[1]], &key = pickle[tuple.items[2]], &count = pickle[tuple.items[4]];
    if (type.kind != Kind::global || key.kind != Kind::text || count.kind != Kind::integer || count.integer < 0)
      wrong_pickle("describes a storage wrongly");
    storages_.push_back(storage(std::string(key.text), storage_type(std::string(type.text)), count.integer));
    return pickle.add_object(-static_cast<std::int64_t>(storages_.size()));
  }

  /// The tensor that an object node stands for.
  const at::Tensor& tensor_of(const Node& node) const {
    if (node.kind != Kind::object || node.integer < 0) wrong_pickle("has a storage where a tensor should be");
    return tensors_[static_cast<std::size_t>(node.integer)];
  }

 private:
  struct Memory {
    std::shared_ptr<void> owner;
    std::byte* data = nullptr;
    std::uint64_t bytes = 0;
  };
  struct Storage {
    Memory memory;
    std::optional<c10::ScalarType> type;  // none: bytes of any type
    std::uint64_t bytes = 0;              // as the pickle says; the file may hold no less
  };

  static std::optional<c10::ScalarType> dtype(std::string_view name) {
    auto rest = after(name, "torch.");
    return rest ? type_by(&TorchType::dtype, *rest) : std::nullopt;
  }
  static std::optional<c10::ScalarType> storage_type(std::string_view name) {
    auto rest = after(name, "torch.");
    return rest ? type_by(&TorchType::storage, *rest) : std::nullopt;
  }

  Memory memory(const std::string& key) {
    if (auto known = memories_.find(key); known != memories_.end()) return known->second;
    const auto* entry = archive_.find(prefix_ + "data/" + key);
    if (!entry) throw CheckpointCorrupt("the archive lacks the data of storage '" + key + "'");
    Memory found{archive_.file(), archive_.file()->data() + entry->offset, entry->size};
    if (reinterpret_cast<std::uintptr_t>(found.data) % kAlignment != 0 && found.bytes > 0) {
      auto copy = std::make_shared<at::Tensor>(at::empty({static_cast<std::int64_t>(found.bytes)}, at::kByte));
      std::memcpy(copy->mutable_data_ptr(), found.data, found.bytes);
      found.data = static_cast<std::byte*>(copy->mutable_data_ptr());
      found.owner = copy;
    }
    return memories_.emplace(key, found).first->second;
  }

  Storage storage(const std::string& key, std::optional<c10::ScalarType> type, std::int64_t count) {
    auto bytes = checked_bytes({count}, type ? c10::elementSize(*type) : 1);
    Storage out{memory(key), type, bytes.value_or(UINT64_MAX)};
    if (out.bytes > out.memory.bytes)
      throw CheckpointCorrupt("the storage '" + key + "' should have " + std::to_string(out.bytes) +
                              " bytes, but has " + std::to_string(out.memory.bytes));
    return out;
  }

  std::vector<std::int64_t> sizes(const PickleReader& pickle, Id id, const char* what) {
    std::vector<std::int64_t> out;
    const Node& node = pickle[id];
    if (node.kind != Kind::tuple && node.kind != Kind::list) wrong_pickle(std::string("has a tensor without ") + what);
    if (node.items.size() > kMaxDimensions) wrong_pickle("has a tensor of more than 64 dimensions");
    for (Id item : node.items) {
      if (pickle[item].kind != Kind::integer || pickle[item].integer < 0)
        wrong_pickle(std::string("has a tensor with a wrong number in its ") + what);
      out.push_back(pickle[item].integer);
    }
    return out;
  }

  /// (storage, offset, sizes, strides, …)
  Id tensor(PickleReader& pickle, const std::vector<Id>& args, std::optional<c10::ScalarType> type) {
    const Node &where = pickle[args[0]], &offset = pickle[args[1]];
    if (where.kind != Kind::object || where.integer >= 0) wrong_pickle("has a tensor without a storage");
    if (offset.kind != Kind::integer || offset.integer < 0) wrong_pickle("has a tensor with a wrong offset");
    const Storage& storage = storages_[static_cast<std::size_t>(-where.integer - 1)];
    if (!type) type = storage.type;
    if (!type) wrong_pickle("has a tensor without a type");
    auto shape = sizes(pickle, args[2], "sizes");
    auto strides = sizes(pickle, args[3], "strides");
    if (shape.size() != strides.size()) wrong_pickle("has a tensor with another number of strides than of sizes");
    tensors_.push_back(view(storage, *type, static_cast<std::uint64_t>(offset.integer), shape, strides));
    return pickle.add_object(static_cast<std::int64_t>(tensors_.size() - 1));
  }

  at::Tensor view(const Storage& storage, c10::ScalarType type, std::uint64_t offset,
                  const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& strides) {
    const auto bytes = checked_bytes(shape, c10::elementSize(type));
    if (!bytes) wrong_pickle("has a tensor too large for any memory");
    if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return at::empty(shape, type);
    const std::uint64_t elements = storage.bytes / c10::elementSize(type);
    std::uint64_t last = offset;
    for (std::size_t i = 0; i < shape.size() && last < elements; ++i) {
      auto steps = static_cast<std::uint64_t>(shape[i] - 1), stride = static_cast<std::uint64_t>(strides[i]);
      last = steps > 0 && stride > (elements - 1 - last) / steps ? elements : last + steps * stride;
    }
    if (last >= elements) wrong_pickle("has a tensor that reaches beyond its storage");
    if (*bytes > storage.bytes) {
      if (*bytes > expanded_left_)
        wrong_pickle("has an expanded tensor of " + std::to_string(*bytes) + " bytes over a storage of " +
                     std::to_string(storage.bytes) + ", more than a file of this size may ask for");
      expanded_left_ -= *bytes;
    }
    auto* data = storage.memory.data + offset * c10::elementSize(type);
    if (type == c10::ScalarType::Bool) require_bools(reinterpret_cast<const unsigned char*>(data), last - offset + 1);
    return at::from_blob(
        data, shape, strides, [owner = storage.memory.owner](void*) {}, at::TensorOptions(type));
  }

  Id same_tensor(const PickleReader& pickle, Id id) {
    tensor_of(pickle[id]);
    return id;
  }

  /// (function, type, arguments, state): a tensor that carried attributes.
  Id subclass(PickleReader& pickle, const std::vector<Id>& args) {
    const Node &function = pickle[args[0]], &inner = pickle[args[2]];
    if (function.kind != Kind::global || inner.kind != Kind::tuple ||
        !function.text.starts_with("torch._utils._rebuild_"))
      wrong_pickle("rebuilds a tensor in an unknown way");
    return call(pickle, std::string(function.text), args[2]);
  }

  Id dict(PickleReader& pickle, const std::vector<Id>& args) {
    Node out{.kind = Kind::dict};
    if (!args.empty()) {
      const Node& given = pickle[args[0]];
      if (given.kind == Kind::dict) {
        out.items = given.items;
      } else {  // pairs
        for (Id pair : given.items) {
          if (pickle[pair].items.size() != 2) wrong_pickle("makes a dict of something other than pairs");
          out.items.insert(out.items.end(), pickle[pair].items.begin(), pickle[pair].items.end());
        }
      }
    }
    return pickle.add(std::move(out));
  }

  Id list(PickleReader& pickle, const std::vector<Id>& args) {
    Node out{.kind = Kind::list};
    if (!args.empty()) {
      const Node& given = pickle[args[0]];
      if (given.kind != Kind::list && given.kind != Kind::tuple) wrong_pickle("makes a list of something else");
      out.items = given.items;
    }
    return pickle.add(std::move(out));
  }

  Id device(PickleReader& pickle, const std::vector<Id>& args) {
    std::string name;
    for (Id id : args) {
      const Node& part = pickle[id];
      if (part.kind == Kind::text)
        name += part.text;
      else if (part.kind == Kind::integer)
        name += ":" + std::to_string(part.integer);
    }
    return pickle.add({.kind = Kind::text, .text = pickle.keep(std::move(name))});
  }

  // Older protocols write bytes as text of the same code points.
  Id bytes(PickleReader& pickle, const std::vector<Id>& args) {
    const Node& given = pickle[args[0]];
    if (given.kind == Kind::bytes) return args[0];
    if (given.kind != Kind::text) wrong_pickle("makes bytes of something that is no text");
    std::string out;
    for (std::size_t i = 0; i < given.text.size(); ++i) {
      auto c = static_cast<unsigned char>(given.text[i]);
      if (c < 0x80) {
        out += static_cast<char>(c);
      } else if ((c == 0xC2 || c == 0xC3) && i + 1 < given.text.size()) {
        out += static_cast<char>((c & 3) << 6 | (given.text[++i] & 0x3F));
      } else {
        wrong_pickle("makes bytes of text that holds other characters");
      }
    }
    return pickle.add({.kind = Kind::bytes, .text = pickle.keep(std::move(out))});
  }

  const ZipReader& archive_;
  std::string prefix_;
  std::unordered_map<std::string, Memory> memories_;
  std::vector<Storage> storages_;
  std::vector<at::Tensor> tensors_;
  std::uint64_t expanded_left_;
};

/// Nodes to values. A node that is reached twice is made twice, one that contains itself runs into the depth limit.
class Converter {
 public:
  Converter(const PickleReader& pickle, const TorchHost& host, std::size_t pickle_bytes)
      : pickle_(pickle),
        host_(host),
        values_left_(std::min(kMaxValues + kValuesPerByte * pickle_bytes, kMostValues)),
        text_left_(std::min(kMaxText + kTextPerByte * pickle_bytes, kMostText)) {}

  Value convert(Id id, int depth) {
    if (depth > kMaxDepth) wrong_pickle("is nested deeper than " + std::to_string(kMaxDepth) + " levels");
    const Node& node = pickle_[id];
    if (values_left_-- == 0 || node.text.size() > text_left_) wrong_pickle("grows far beyond its size");
    text_left_ -= node.text.size();
    switch (node.kind) {
      case Kind::none:
        return {};
      case Kind::boolean:
        return node.integer != 0;
      case Kind::integer:
        return node.integer;
      case Kind::real:
        return node.real;
      case Kind::text:
      case Kind::bytes:
      case Kind::global:
        return node.text;  // a type, such as torch.float32
      case Kind::object:
        return host_.tensor_of(node);
      case Kind::dict:
        return dict(node, depth);
      default:
        return list(node, depth);
    }
  }

 private:
  Value list(const Node& node, int depth) {
    Value::List out;
    for (Id item : node.items) out.push_back(convert(item, depth + 1));
    return out;
  }

  Value dict(const Node& node, int depth) {
    Value::Map out;
    std::unordered_set<std::string> seen;
    for (std::size_t i = 0; i + 1 < node.items.size(); i += 2) {
      std::string name = key(pickle_[node.items[i]]);
      if (name.size() > text_left_) wrong_pickle("grows far beyond its size");
      text_left_ -= name.size();
      if (!seen.insert(name).second)
        throw CheckpointError("a dict in the file has two keys that read as '" + name + "'");
      out.append(std::move(name), convert(node.items[i + 1], depth + 1));
    }
    return out;
  }

  static std::string key(const Node& node) {
    switch (node.kind) {
      case Kind::text:
        return std::string(node.text);
      case Kind::integer:
        return std::to_string(node.integer);
      case Kind::boolean:
        return node.integer ? "True" : "False";
      case Kind::none:
        return "None";
      default:
        throw CheckpointError("a dict in the file has a key that is neither text nor an integer");
    }
  }

  const PickleReader& pickle_;
  const TorchHost& host_;
  std::size_t values_left_, text_left_;
};

/// The folder in the archive that holds everything, with its slash.
std::string find_prefix(const ZipReader& archive) {
  std::string prefix;
  bool found = false;
  for (const auto& [name, entry] : archive.entries()) {
    if (name.ends_with("/constants.pkl"))
      throw CheckpointError(
          "it is a TorchScript archive (torch.jit.save, or torch::save of C++), which holds a program; "
          "save a state dict with torch.save of Python, or with this library");
    if (!name.ends_with("/data.pkl")) continue;
    if (found) throw CheckpointCorrupt("the archive has two files data.pkl");
    found = true;
    prefix = name.substr(0, name.size() - std::string_view("data.pkl").size());
  }
  if (!found) throw CheckpointCorrupt("the zip archive has no data.pkl, so torch.save did not write it");
  return prefix;
}

}  // namespace

bool looks_like_torch(const MappedFile& file) { return file.size() > 4 && file.text(0, 4) == "PK\3\4"; }

Value read_torch(const std::shared_ptr<MappedFile>& file) {
  ZipReader archive(file);
  const std::string prefix = find_prefix(archive);
  if (const auto* order = archive.find(prefix + "byteorder"); order && archive.bytes(*order) != "little")
    throw CheckpointError("its numbers are in " + std::string(archive.bytes(*order).substr(0, 16)) +
                          "-endian order, not little");
  std::string_view bytes = archive.bytes(*archive.find(prefix + "data.pkl"));
  if (bytes.size() > kMostPickleBytes)
    throw CheckpointError("its data.pkl has more than 64 MiB; keep large data in tensors");
  file->populate();
  TorchHost host(archive, prefix);
  PickleReader pickle(bytes, host);
  Id root = pickle.read();
  return Converter(pickle, host, bytes.size()).convert(root, 0);
}

}  // namespace fabric::checkpoint

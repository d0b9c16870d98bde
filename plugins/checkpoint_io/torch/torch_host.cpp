#include "plugins/checkpoint_io/torch/torch_host.h"

#include <algorithm>
#include <cstring>
#include <unordered_set>

#include <ATen/ops/_neg_view.h>
#include <ATen/ops/_sparse_compressed_tensor_unsafe.h>
#include <ATen/ops/_sparse_coo_tensor_unsafe.h>
#include <ATen/ops/_validate_sparse_compressed_tensor_args.h>
#include <ATen/ops/_validate_sparse_coo_tensor_args.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/scalar_tensor.h>

#include <fabric/base/error.h>

#include "plugins/checkpoint_io/tensor_bytes.h"
#include "plugins/checkpoint_io/torch/torch_types.h"

namespace fabric::checkpoint {
namespace {

using Id = PickleReader::Id;
using Kind = PickleReader::Kind;
using Node = PickleReader::Node;

// Expanded tensors name the same bytes many times over: copies of all of them must not take memory without bound.
constexpr std::uint64_t kMaxExpanded = std::uint64_t{64} << 20, kExpandedPerByte = 16;
constexpr std::size_t kMostTensorDimensions = 64, kMaxArguments = 16;
constexpr std::uintptr_t kStorageAlignment = 16;

const std::unordered_set<std::string> kTensorCalls{"torch._utils._rebuild_tensor",
                                                   "torch._utils._rebuild_tensor_v2",
                                                   "torch._utils._rebuild_tensor_v3",
                                                   "torch._utils._rebuild_parameter",
                                                   "torch._utils._rebuild_sparse_tensor",
                                                   "torch._utils._rebuild_parameter_with_state",
                                                   "torch._tensor._rebuild_from_type_v2",
                                                   "builtins.complex",
                                                   "__builtin__.complex"};
const std::unordered_set<std::string> kTensorClasses{"torch.Tensor", "torch.nn.parameter.Parameter"};

std::optional<c10::ScalarType> type_by(std::string_view TorchType::*field, std::string_view name) {
  constexpr std::string_view kModule = "torch.";
  if (!name.starts_with(kModule)) return std::nullopt;
  name.remove_prefix(kModule.size());
  for (const auto& known : kTorchTypes)
    if (known.*field == name && !name.empty()) return known.type;
  return std::nullopt;
}

std::vector<std::int64_t> numbers_of(const PickleReader& pickle, Id id, const char* what) {
  std::vector<std::int64_t> out;
  const Node& node = pickle[id];
  if (node.kind != Kind::tuple && node.kind != Kind::list) wrong_pickle(std::string("has a tensor without ") + what);
  if (node.items.size() > kMostTensorDimensions) wrong_pickle("has a tensor of more than 64 dimensions");
  for (Id item : node.items) {
    if (pickle[item].kind != Kind::integer || pickle[item].integer < 0)
      wrong_pickle(std::string("has a tensor with a wrong number in its ") + what);
    out.push_back(pickle[item].integer);
  }
  return out;
}

// An empty dict in every file that PyTorch writes since it can.
void require_no_hooks(const PickleReader& pickle, Id id) {
  const Node& hooks = pickle[id];
  if (hooks.kind != Kind::none && !hooks.items.empty())
    throw CheckpointError("a tensor in the file has backward hooks, which are code; save it without them");
}

double part_of_complex(const Node& node) {
  if (node.kind == Kind::integer) return static_cast<double>(node.integer);
  if (node.kind != Kind::real) wrong_pickle("makes a complex number of something that is no number");
  return node.real;
}

std::optional<c10::Layout> layout_by(std::string_view name) {
  const std::pair<std::string_view, c10::Layout> known[] = {{"torch.sparse_coo", c10::kSparse},
                                                            {"torch.sparse_csr", c10::kSparseCsr},
                                                            {"torch.sparse_csc", c10::kSparseCsc},
                                                            {"torch.sparse_bsr", c10::kSparseBsr},
                                                            {"torch.sparse_bsc", c10::kSparseBsc}};
  for (const auto& [text, layout] : known)
    if (text == name) return layout;
  return std::nullopt;
}

}  // namespace

void wrong_pickle(const std::string& why) { throw CheckpointCorrupt("the pickled part of the file " + why); }

std::optional<c10::ScalarType> torch_dtype(std::string_view name) { return type_by(&TorchType::dtype, name); }
std::optional<c10::ScalarType> torch_storage_type(std::string_view name) { return type_by(&TorchType::storage, name); }
bool is_torch_storage(std::string_view name) {
  return name == "torch.storage.UntypedStorage" || name == "torch.UntypedStorage" || torch_storage_type(name);
}

TorchHost::TorchHost(std::shared_ptr<MappedFile> file, const StorageBytes& storages, bool passes_over)
    : file_(std::move(file)),
      bytes_of_(storages),
      passes_over_(passes_over),
      expanded_left_(std::max(kMaxExpanded, kExpandedPerByte * file_->size())) {}

bool TorchHost::allows(const std::string& name) {
  if (kTensorCalls.contains(name) || kTensorClasses.contains(name) || makes_plain_value(name) || torch_dtype(name) ||
      is_torch_storage(name))
    return true;
  if (passes_over_) return false;
  throw CheckpointError("the file holds a Python object '" + name.substr(0, 200) +
                        "'; only Python can rebuild it, by running code. Save a plain state dict of tensors, numbers, "
                        "strings, lists and dicts instead, or take out the part that is one: fabric convert --key");
}

Id TorchHost::call(PickleReader& pickle, const std::string& name, Id arguments) {
  if (pickle[arguments].items.size() > kMaxArguments) wrong_pickle("calls '" + name + "' with too many arguments");
  const auto args = pickle[arguments].items;
  // What is made out of an object that only Python can make, only Python can make.
  for (Id id : args)
    if (pickle[id].kind == Kind::foreign) return id;
  auto need = [&](std::size_t least, std::size_t most) {
    if (args.size() < least) wrong_pickle("calls '" + name + "' with too few arguments");
    if (args.size() > most) wrong_pickle("calls '" + name + "' with an argument more than is known");
  };
  if (auto plain = call_for_plain_value(pickle, name, args)) return *plain;
  if (name == "torch._utils._rebuild_tensor") return need(4, 4), tensor(pickle, args, std::nullopt, std::nullopt);
  if (name == "torch._utils._rebuild_tensor_v2") {
    need(4, 7);
    if (args.size() > 5) require_no_hooks(pickle, args[5]);
    return tensor(pickle, args, std::nullopt, args.size() > 6 ? std::optional(args[6]) : std::nullopt);
  }
  if (name == "torch._utils._rebuild_tensor_v3") {
    need(7, 8);
    require_no_hooks(pickle, args[5]);
    return tensor(pickle, args, torch_dtype(pickle[args[6]].text),
                  args.size() > 7 ? std::optional(args[7]) : std::nullopt);
  }
  if (name == "torch._utils._rebuild_parameter") return need(1, 3), parameter(pickle, args);
  if (name == "torch._utils._rebuild_parameter_with_state") return need(1, 4), parameter(pickle, args);
  if (name == "torch._tensor._rebuild_from_type_v2") return need(3, 4), subclass(pickle, args);
  if (name == "torch._utils._rebuild_sparse_tensor") return need(2, 2), sparse(pickle, args);
  if (name.ends_with(".complex")) {
    need(2, 2);
    const c10::complex<double> number(part_of_complex(pickle[args[0]]), part_of_complex(pickle[args[1]]));
    return keep(pickle, at::scalar_tensor(number, at::kComplexDouble));
  }
  wrong_pickle("calls '" + name + "', which is no function");
}

Id TorchHost::persistent(PickleReader& pickle, Id id) {
  const Node& tuple = pickle[id];
  if (tuple.kind != Kind::tuple || tuple.items.size() < 5 || pickle[tuple.items[0]].text != "storage")
    wrong_pickle("refers to something that is no storage");
  const Node &type = pickle[tuple.items[1]], &key = pickle[tuple.items[2]], &count = pickle[tuple.items[4]];
  if (type.kind == Kind::foreign) return tuple.items[1];
  if (type.kind != Kind::global || key.kind != Kind::text || count.kind != Kind::integer || count.integer < 0)
    wrong_pickle("describes a storage wrongly");
  Storage found = storage(std::string(key.text), torch_storage_type(type.text), count.integer);
  if (tuple.items.size() > 5) narrow(pickle, pickle[tuple.items[5]], found);
  storages_.push_back(std::move(found));
  return pickle.add_object(-static_cast<std::int64_t>(storages_.size()));
}

const at::Tensor& TorchHost::tensor_of(const Node& node) const {
  if (node.kind != Kind::object || node.integer < 0) wrong_pickle("has a storage where a tensor should be");
  return tensors_[static_cast<std::size_t>(node.integer)];
}

TorchHost::Memory TorchHost::memory(const std::string& key) {
  if (auto known = memories_.find(key); known != memories_.end()) return known->second;
  const auto place = bytes_of_.find(key);
  Memory found{file_, place.data, place.size};
  if (reinterpret_cast<std::uintptr_t>(found.data) % kStorageAlignment != 0 && found.bytes > 0) {
    auto copy = std::make_shared<at::Tensor>(at::empty({static_cast<std::int64_t>(found.bytes)}, at::kByte));
    std::memcpy(copy->mutable_data_ptr(), found.data, found.bytes);
    found.data = static_cast<std::byte*>(copy->mutable_data_ptr());
    found.owner = copy;
  }
  return memories_.emplace(key, found).first->second;
}

TorchHost::Storage TorchHost::storage(const std::string& key, std::optional<c10::ScalarType> type, std::int64_t count) {
  auto bytes = checked_bytes({count}, type ? c10::elementSize(*type) : 1);
  Storage out{memory(key), type, bytes.value_or(UINT64_MAX)};
  if (out.bytes > out.memory.bytes)
    throw CheckpointCorrupt("the storage '" + key.substr(0, 40) + "' should have " + std::to_string(out.bytes) +
                            " bytes, but has " + std::to_string(out.memory.bytes));
  return out;
}

// (key, offset, size), in elements: a storage that was a part of another one.
void TorchHost::narrow(const PickleReader& pickle, const Node& view, Storage& storage) const {
  if (view.kind == Kind::none) return;
  if (view.kind != Kind::tuple || view.items.size() != 3) wrong_pickle("describes a part of a storage wrongly");
  const Node &offset = pickle[view.items[1]], &size = pickle[view.items[2]];
  const std::uint64_t element = storage.type ? c10::elementSize(*storage.type) : 1, all = storage.bytes / element;
  if (offset.kind != Kind::integer || size.kind != Kind::integer || offset.integer < 0 || size.integer < 0 ||
      static_cast<std::uint64_t>(offset.integer) > all ||
      static_cast<std::uint64_t>(size.integer) > all - static_cast<std::uint64_t>(offset.integer))
    wrong_pickle("has a part of a storage that reaches beyond it");
  storage.memory.data += static_cast<std::uint64_t>(offset.integer) * element;
  storage.bytes = static_cast<std::uint64_t>(size.integer) * element;
}

Id TorchHost::keep(PickleReader& pickle, at::Tensor tensor) {
  tensors_.push_back(std::move(tensor));
  return pickle.add_object(static_cast<std::int64_t>(tensors_.size() - 1));
}

/// (storage, offset, sizes, strides, …)
Id TorchHost::tensor(PickleReader& pickle, const Arguments& args, std::optional<c10::ScalarType> type,
                     std::optional<Id> properties) {
  const Node &where = pickle[args[0]], &offset = pickle[args[1]];
  if (where.kind != Kind::object || where.integer >= 0) wrong_pickle("has a tensor without a storage");
  if (offset.kind != Kind::integer || offset.integer < 0) wrong_pickle("has a tensor with a wrong offset");
  const Storage& storage = storages_[static_cast<std::size_t>(-where.integer - 1)];
  if (!type) type = storage.type;
  if (!type) wrong_pickle("has a tensor without a type");
  auto shape = numbers_of(pickle, args[2], "sizes");
  auto strides = numbers_of(pickle, args[3], "strides");
  if (shape.size() != strides.size()) wrong_pickle("has a tensor with another number of strides than of sizes");
  at::Tensor made = view(storage, *type, static_cast<std::uint64_t>(offset.integer), shape, strides);
  if (properties && pickle[*properties].kind != Kind::none)
    made = with_properties(pickle, pickle[*properties], std::move(made));
  return keep(pickle, std::move(made));
}

at::Tensor TorchHost::view(const Storage& storage, c10::ScalarType type, std::uint64_t offset,
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
  if (*bytes > storage.bytes)
    spend(*bytes, "an expanded tensor of " + std::to_string(*bytes) + " bytes over a storage of " +
                      std::to_string(storage.bytes));
  auto* data = storage.memory.data + offset * c10::elementSize(type);
  if (type == c10::ScalarType::Bool) require_bools(reinterpret_cast<const unsigned char*>(data), last - offset + 1);
  return at::from_blob(
      data, shape, strides, [owner = storage.memory.owner](void*) {}, at::TensorOptions(type));
}

void TorchHost::spend(std::uint64_t bytes, const std::string& on) {
  if (bytes > expanded_left_) wrong_pickle("has " + on + ", more than a file of this size may ask for");
  expanded_left_ -= bytes;
}

// A view that reads as the conjugate or the negative of its storage, which the file holds. Done at once: the bytes of
// the result are its values.
at::Tensor TorchHost::with_properties(const PickleReader& pickle, const Node& properties, at::Tensor tensor) {
  if (properties.kind != Kind::dict) wrong_pickle("has a tensor whose properties are no dict");
  for (std::size_t i = 0; i + 1 < properties.items.size(); i += 2) {
    const Node &name = pickle[properties.items[i]], &value = pickle[properties.items[i + 1]];
    if (name.kind != Kind::text || (name.text != "conj" && name.text != "neg"))
      throw CheckpointError("a tensor in the file has the property '" + std::string(name.text.substr(0, 40)) +
                            "', which is not known here; load it with PyTorch and save its clone()");
    if (value.kind != Kind::boolean) wrong_pickle("has a tensor with a property that is neither true nor false");
    if (!value.integer) continue;
    spend(tensor.nbytes(), "tensors that are to be conjugated or negated");
    if (name.text == "conj" && !tensor.is_complex()) wrong_pickle("has a conjugated tensor that is not complex");
    tensor = name.text == "conj" ? tensor.conj().resolve_conj() : at::_neg_view(tensor).resolve_neg();
  }
  return tensor;
}

/// (tensor, requires_grad, hooks, attributes)
Id TorchHost::parameter(PickleReader& pickle, const Arguments& args) {
  tensor_of(pickle[args[0]]);
  if (args.size() > 2) require_no_hooks(pickle, args[2]);
  return args[0];
}

/// (function, type, arguments, attributes): a tensor that carried attributes.
Id TorchHost::subclass(PickleReader& pickle, const Arguments& args) {
  const Node &function = pickle[args[0]], &type = pickle[args[1]], &inner = pickle[args[2]];
  if (function.kind != Kind::global || inner.kind != Kind::tuple ||
      !function.text.starts_with("torch._utils._rebuild_"))
    wrong_pickle("rebuilds a tensor in an unknown way");
  if (type.kind != Kind::global || !kTensorClasses.contains(std::string(type.text)))
    wrong_pickle("rebuilds a tensor of an unknown class");
  return call(pickle, std::string(function.text), args[2]);
}

/// (layout, (indices, values, sizes, coalesced)) or (layout, (compressed indices, plain indices, values, sizes))
Id TorchHost::sparse(PickleReader& pickle, const Arguments& args) {
  const std::string name(pickle[args[0]].text.substr(0, 40));
  const auto layout = layout_by(name);
  if (!layout) throw CheckpointError("the file holds a sparse tensor of the layout '" + name + "', which is not read");
  const Node& data = pickle[args[1]];
  const bool coo = *layout == c10::kSparse;
  if (data.kind != Kind::tuple || data.items.size() > 4 || data.items.size() < (coo ? 3u : 4u))
    wrong_pickle("describes a sparse tensor wrongly");
  for (Id id : data.items)
    if (pickle[id].kind == Kind::foreign) return id;
  auto part = [&](std::size_t i) { return tensor_of(pickle[data.items[i]]); };
  if (!coo) {
    const auto shape = numbers_of(pickle, data.items[3], "sizes");
    at::_validate_sparse_compressed_tensor_args(part(0), part(1), part(2), shape, *layout);
    return keep(pickle, at::_sparse_compressed_tensor_unsafe(part(0), part(1), part(2), shape,
                                                             part(2).options().layout(*layout)));
  }
  const auto shape = numbers_of(pickle, data.items[2], "sizes");
  std::optional<bool> coalesced;
  if (data.items.size() > 3 && pickle[data.items[3]].kind == Kind::boolean)
    coalesced = pickle[data.items[3]].integer != 0;
  at::_validate_sparse_coo_tensor_args(part(0), part(1), shape, coalesced);
  return keep(pickle, at::_sparse_coo_tensor_unsafe(part(0), part(1), shape, part(1).options().layout(c10::kSparse),
                                                    coalesced));
}

}  // namespace fabric::checkpoint

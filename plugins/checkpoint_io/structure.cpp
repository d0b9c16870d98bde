#include "plugins/checkpoint_io/structure.h"

#include <unordered_set>

#include <ATen/ops/empty.h>
#include <ATen/ops/view_as_complex.h>
#include <ATen/ops/view_as_real.h>

#include <fabric/base/error.h>
#include "fabric/config/scalar_internal.h"
#include "fabric/state/checked_tensor_internal.h"

namespace fabric::checkpoint {
namespace {

constexpr std::string_view kReserved = "__metadata__";
constexpr int kDeepest = 60;  // of the 64 levels that write_json allows, the rest is for marks around and below

bool is_utf8(std::string_view text) { return detail::find_invalid_utf8(text) == text.npos; }

Tree tagged(std::string tag, Tree content) { return Tree::Map{{std::move(tag), std::move(content)}}; }

std::string to_hex(std::string_view bytes) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  for (unsigned char c : bytes) {
    out += kHex[c >> 4];
    out += kHex[c & 15];
  }
  return out;
}

std::string from_hex(const std::string& text) {
  auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; };
  std::string out;
  if (text.size() % 2 != 0) throw CheckpointCorrupt("half a byte in '$bytes'");
  for (std::size_t i = 0; i < text.size(); i += 2) {
    int high = digit(text[i]), low = digit(text[i + 1]);
    if (high < 0 || low < 0) throw CheckpointCorrupt("'$bytes' holds something other than hexadecimal digits");
    out += static_cast<char>(high << 4 | low);
  }
  return out;
}

// A complex tensor that is in a file as pairs of reals, and the other way round. Boxes hold whole pairs.
struct ComplexOfPairs : CheckedTensor {
  explicit ComplexOfPairs(at::Tensor stored) : pairs(std::move(stored)) {}
  void read(at::IntArrayRef offsets, at::Tensor& into) const override {
    at::Tensor box = at::empty(into.sizes(), at::TensorOptions(c10::toComplexType(pairs.scalar_type())));
    at::Tensor reals = at::view_as_real(box);
    read_box(pairs, with_last(offsets, 0), reals);
    into.copy_(box);
  }
  void check(at::IntArrayRef offsets, at::IntArrayRef sizes) const override {
    check_box(pairs, with_last(offsets, 0), with_last(sizes, 2));
  }
  at::Tensor in_place() const override {
    const auto* checked = dynamic_cast<const CheckedTensor*>(stored_in(pairs));
    const at::Tensor there = checked ? checked->in_place() : at::Tensor();
    return there.defined() ? at::view_as_complex(there) : there;
  }
  static std::vector<std::int64_t> with_last(at::IntArrayRef list, std::int64_t last) {
    auto out = list.vec();
    out.push_back(last);
    return out;
  }
  at::Tensor pairs;
};

struct PairsOfComplex : StoredTensor {
  explicit PairsOfComplex(at::Tensor stored) : complex(std::move(stored)) {}
  void read(at::IntArrayRef offsets, at::Tensor& into) const override {
    const auto last = into.sizes().size() - 1;
    at::Tensor box = at::empty(into.sizes().slice(0, last), complex.options().device(c10::kCPU));
    read_box(complex, offsets.slice(0, last), box);
    into.copy_(at::view_as_real(box));
  }
  at::Tensor complex;
};

at::Tensor reals_of(const at::Tensor& complex) {
  if (!stored_in(complex)) return at::view_as_real(complex);
  auto sizes = complex.sizes().vec();
  sizes.push_back(2);
  return make_stored_tensor(sizes, c10::toRealValueType(complex.scalar_type()),
                            std::make_shared<PairsOfComplex>(complex));
}

class Flattener {
 public:
  Tree take(const Value& value, const std::string& path, int depth) {
    if (depth > kDeepest)
      throw CheckpointError("the value at '" + path.substr(0, 80) + "…' is nested deeper than " +
                            std::to_string(kDeepest) + " levels; checkpoints hold no deeper trees");
    if (value.is<at::Tensor>()) return tensor(value.as<at::Tensor>(), path);
    if (value.is_double()) return value.as_double();
    if (value.is_string()) return text(value.as_string());
    if (value.is_list()) return list(value.as_list(), path, depth);
    if (value.is_map()) return map(value.as_map(), path, depth);
    if (value.is_bool()) return value.as_bool();
    if (value.is_int()) return value.as_int();
    return {};
  }
  std::vector<NamedTensor> tensors;

 private:
  static std::string below(const std::string& path, const std::string& key) {
    return path.empty() ? key : path + "." + key;
  }

  Tree tensor(const at::Tensor& tensor, const std::string& path) {
    if (!tensor.defined()) return tagged("$tensor", {});
    at::Tensor plain = storable(tensor, path);
    const bool complex = plain.is_complex();
    if (complex) plain = reals_of(plain);
    if (!safetensors_name(plain.scalar_type()))
      throw CheckpointError("the tensor '" + path + "' cannot be saved: its type " +
                            c10::toString(plain.scalar_type()) + " has no place in the format; convert it first");
    std::string name = unique(path);
    tensors.push_back({name, plain});
    return tagged(complex ? "$complex" : "$tensor", name);
  }

  std::string unique(std::string name) {
    if (name.empty()) name = "value";
    if (!is_utf8(name)) name = to_hex(name);
    std::string candidate = name;
    for (int i = 1; candidate == kReserved || !names_.insert(candidate).second; ++i)
      candidate = name + "~" + std::to_string(i);
    return candidate;
  }

  static Tree text(const std::string& value) {
    if (is_utf8(value)) return value;
    return tagged("$bytes", to_hex(value));
  }

  Tree list(const Value::List& items, const std::string& path, int depth) {
    Tree::List out;
    out.reserve(items.size());
    for (std::size_t i = 0; i < items.size(); ++i)
      out.push_back(take(items[i], below(path, std::to_string(i)), depth + 1));
    return out;
  }

  Tree map(const Value::Map& entries, const std::string& path, int depth) {
    bool plain_keys = true;
    for (const auto& [key, item] : entries) plain_keys &= is_utf8(key);
    if (!plain_keys) {
      Tree::List pairs;
      for (const auto& [key, item] : entries)
        pairs.push_back(Tree::List{text(key), take(item, below(path, key), depth + 3)});
      return tagged("$pairs", pairs);
    }
    const bool ambiguous = entries.size() == 1 && entries.begin()->first.starts_with('$');
    Tree::Map out;
    for (const auto& [key, item] : entries) out.append(key, take(item, below(path, key), depth + 1 + ambiguous));
    if (ambiguous) return tagged("$map", std::move(out));
    return out;
  }

  std::unordered_set<std::string> names_;
};

class Unflattener {
 public:
  explicit Unflattener(const std::unordered_map<std::string, at::Tensor>& tensors) : tensors_(tensors) {}

  Value make(const Tree& tree) {
    if (tree.is_list()) {
      Value::List out;
      out.reserve(tree.as_list().size());
      for (const auto& item : tree.as_list()) out.push_back(make(item));
      return out;
    }
    if (!tree.is_map()) return to_value(tree);
    const auto& entries = tree.as_map();
    if (entries.size() == 1 && entries.begin()->first.starts_with('$'))
      return special(entries.begin()->first, entries.begin()->second);
    return map(entries);
  }

  void require_all_used() const {
    for (const auto& [name, tensor] : tensors_)
      if (!used_.contains(name))
        throw CheckpointCorrupt("the tensor '" + name + "' has no place in the checkpoint's structure");
  }

 private:
  Value map(const Tree::Map& entries) {
    Value::Map out;
    for (const auto& [key, item] : entries) out.append(key, make(item));
    return out;
  }

  Value special(const std::string& tag, const Tree& content) {
    if (tag == "$tensor" && content.is_null()) return at::Tensor();
    if (tag == "$tensor" && content.is_string()) return tensor(content.as_string());
    if (tag == "$complex" && content.is_string()) return complex(content.as_string());
    if (tag == "$bytes" && content.is_string()) return from_hex(content.as_string());
    if (tag == "$map" && content.is_map()) return map(content.as_map());
    if (tag == "$pairs" && content.is_list()) return pairs(content.as_list());
    throw CheckpointCorrupt("the structure has an unknown mark '" + tag + "' with " + content.kind() +
                            "; perhaps a newer version wrote it");
  }

  at::Tensor tensor(const std::string& name) {
    auto found = tensors_.find(name);
    if (found == tensors_.end())
      throw CheckpointCorrupt("the structure names a tensor '" + name + "' that the file does not hold");
    used_.insert(name);
    return found->second;
  }

  at::Tensor complex(const std::string& name) {
    at::Tensor pairs = tensor(name);
    auto type = pairs.scalar_type();
    if (pairs.dim() == 0 || pairs.size(-1) != 2 ||
        (type != c10::ScalarType::Double && type != c10::ScalarType::Float && type != c10::ScalarType::Half))
      throw CheckpointCorrupt("the tensor '" + name + "' should hold complex numbers as pairs of reals, but does not");
    if (!stored_in(pairs)) return at::view_as_complex(pairs);
    return make_stored_tensor(pairs.sizes().slice(0, static_cast<std::size_t>(pairs.dim()) - 1),
                              c10::toComplexType(pairs.scalar_type()), std::make_shared<ComplexOfPairs>(pairs));
  }

  Value pairs(const Tree::List& list) {
    Value::Map out;
    std::unordered_set<std::string> seen;
    for (const auto& item : list) {
      if (!item.is_list() || item.as_list().size() != 2) throw CheckpointCorrupt("'$pairs' holds something else");
      Value key = make(item.as_list()[0]);
      if (!key.is_string() || !seen.insert(key.as_string()).second)
        throw CheckpointCorrupt("'$pairs' has a key twice, or one that is no string");
      out.append(key.as_string(), make(item.as_list()[1]));
    }
    return out;
  }

  const std::unordered_map<std::string, at::Tensor>& tensors_;
  std::unordered_set<std::string> used_;
};

}  // namespace

Structure flatten(const Value& value) {
  Flattener flattener;
  Tree tree = flattener.take(value, "", 0);
  return {std::move(tree), std::move(flattener.tensors)};
}

Value put_together(const Tree& tree, const std::unordered_map<std::string, at::Tensor>& tensors) {
  Unflattener unflattener(tensors);
  Value value = unflattener.make(tree);
  unflattener.require_all_used();
  return value;
}

}  // namespace fabric::checkpoint

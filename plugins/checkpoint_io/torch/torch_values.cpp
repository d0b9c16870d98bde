#include "plugins/checkpoint_io/torch/torch_values.h"

#include <algorithm>
#include <unordered_set>

#include <fabric/base/error.h>
#include <fabric/base/nearest_name.h>

namespace fabric::checkpoint {
namespace {

using Id = PickleReader::Id;
using Kind = PickleReader::Kind;
using Node = PickleReader::Node;

constexpr int kDeepestValue = 60;  // as deep as this library's own format goes
// Lists and texts that are shared inside the pickle are copied in the result; a small file must not become a huge tree.
constexpr std::size_t kMaxValues = std::size_t{1} << 20, kValuesPerByte = 8;
constexpr std::size_t kMaxText = std::size_t{16} << 20, kTextPerByte = 64, kMostText = std::size_t{512} << 20;
constexpr std::size_t kMostListed = 100;

std::optional<std::string> text_of_key(const Node& node) {
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
      return std::nullopt;
  }
}

// For messages, and no longer than those may be.
std::string below_path(const std::string& path, const std::string& name) {
  constexpr std::size_t kLongest = 200;
  if (path.size() > kLongest) return path;
  return path.empty() ? name.substr(0, kLongest) : path + "." + name.substr(0, kLongest);
}

void list_foreign(std::vector<std::string>& to, const std::string& path, const Node& node) {
  if (to.size() < kMostListed)
    to.push_back((path.empty() ? "" : path.substr(0, 200) + ": ") + std::string(node.text.substr(0, 200)));
  else if (to.size() == kMostListed)
    to.push_back("and more");
}

/// Nodes to values. A node that is reached twice is made twice, one that contains itself runs into the depth limit.
class ValueMaker {
 public:
  ValueMaker(const PickleReader& pickle, const TorchHost& host, std::vector<std::string>* left_out)
      : pickle_(pickle),
        host_(host),
        left_out_(left_out),
        values_left_(std::min(kMaxValues + kValuesPerByte * pickle.length(), kMostValues)),
        text_left_(std::min(kMaxText + kTextPerByte * pickle.length(), kMostText)) {}

  Value make(Id id, const std::string& path, int depth) {
    if (depth > kDeepestValue) wrong_pickle("is nested deeper than " + std::to_string(kDeepestValue) + " levels");
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
      case Kind::foreign:
        return foreign(node, path, depth);
      case Kind::dict:
        return dict(node, path, depth);
      default:
        return list(node, path, depth);
    }
  }

 private:
  Value foreign(const Node& node, const std::string& path, int depth) {
    if (!left_out_ || depth == 0)
      throw CheckpointError("the file holds a Python object '" + std::string(node.text.substr(0, 200)) + "'" +
                            (path.empty() ? "" : " under '" + path.substr(0, 200) + "'") +
                            ", which only Python can rebuild, by running code");
    list_foreign(*left_out_, path, node);
    return {};
  }

  // Paths are for messages about foreign objects alone.
  Value list(const Node& node, const std::string& path, int depth) {
    Value::List out;
    for (std::size_t i = 0; i < node.items.size(); ++i)
      out.push_back(make(node.items[i], left_out_ ? below_path(path, std::to_string(i)) : path, depth + 1));
    return out;
  }

  Value dict(const Node& node, const std::string& path, int depth) {
    Value::Map out;
    std::unordered_set<std::string> seen;
    for (std::size_t i = 0; i + 1 < node.items.size(); i += 2) {
      auto name = text_of_key(pickle_[node.items[i]]);
      if (!name) throw CheckpointError("a dict in the file has a key that is neither text nor an integer");
      if (name->size() > text_left_) wrong_pickle("grows far beyond its size");
      text_left_ -= name->size();
      if (!seen.insert(*name).second)
        throw CheckpointError("a dict in the file has two keys that read as '" + *name + "'");
      const Node& item = pickle_[node.items[i + 1]];
      std::string inner = left_out_ ? below_path(path, *name) : std::string();
      if (left_out_ && item.kind == Kind::foreign)
        list_foreign(*left_out_, inner, item);
      else
        out.append(std::move(*name), make(node.items[i + 1], inner, depth + 1));
    }
    return out;
  }

  const PickleReader& pickle_;
  const TorchHost& host_;
  std::vector<std::string>* left_out_;
  std::size_t values_left_, text_left_;
};

std::optional<Id> entry_of(const PickleReader& pickle, Id dict, std::string_view name) {
  const Node& node = pickle[dict];
  for (std::size_t i = 0; node.kind == Kind::dict && i + 1 < node.items.size(); i += 2)
    if (text_of_key(pickle[node.items[i]]) == name) return node.items[i + 1];
  return std::nullopt;
}

// Keys may hold dots, so the longest one that fits is taken first.
std::optional<Id> find_entry(const PickleReader& pickle, Id root, std::string_view key) {
  if (auto found = entry_of(pickle, root, key)) return found;
  for (auto dot = key.rfind('.'); dot != key.npos && dot > 0; dot = key.rfind('.', dot - 1))
    if (auto inner = entry_of(pickle, root, key.substr(0, dot)))
      if (auto found = find_entry(pickle, *inner, key.substr(dot + 1))) return found;
  return std::nullopt;
}

[[noreturn]] void fail_key(const PickleReader& pickle, Id root, const std::string& key) {
  std::vector<std::string> names;
  const Node& node = pickle[root];
  for (std::size_t i = 0; node.kind == Kind::dict && i + 1 < node.items.size(); i += 2)
    if (auto name = text_of_key(pickle[node.items[i]])) names.push_back(*name);
  throw CheckpointKeyError("the checkpoint has no '" + key + "'" + did_you_mean(key, names));
}

/// What is foreign outside of the part that is read. Shared nodes are looked at once.
class Outside {
 public:
  Outside(const PickleReader& pickle, Id part, std::vector<std::string>& found) : pickle_(pickle), found_(found) {
    seen_.insert(part);
  }
  void look(Id id, const std::string& path, int depth) {
    const Node& node = pickle_[id];
    if (node.kind == Kind::foreign) return list_foreign(found_, path, node);
    if (node.items.empty() || depth > kDeepestValue || !seen_.insert(id).second) return;
    const bool is_dict = node.kind == Kind::dict;
    for (std::size_t i = is_dict; i < node.items.size(); i += is_dict ? 2 : 1) {
      auto name = is_dict ? text_of_key(pickle_[node.items[i - 1]]) : std::to_string(i);
      look(node.items[i], below_path(path, name.value_or("?").substr(0, 200)), depth + 1);
    }
  }

 private:
  const PickleReader& pickle_;
  std::vector<std::string>& found_;
  std::unordered_set<Id> seen_;
};

}  // namespace

CheckpointPart values_of(const PickleReader& pickle, const TorchHost& host, Id root, const std::string& key,
                         bool whole) {
  CheckpointPart out;
  Id part = root;
  if (!key.empty()) {
    auto found = find_entry(pickle, root, key);
    if (!found) fail_key(pickle, root, key);
    part = *found;
    Outside(pickle, part, out.passed_over).look(root, "", 0);
  }
  out.value = ValueMaker(pickle, host, whole ? nullptr : &out.left_out).make(part, key, 0);
  return out;
}

}  // namespace fabric::checkpoint

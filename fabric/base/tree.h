#pragma once

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <fabric/base/error.h>

namespace fabric {

/// A map that keeps the order of insertion; lookups are linear, since the maps here are small.
template <class T>
class OrderedMap {
 public:
  using value_type = std::pair<std::string, T>;
  using Entries = std::vector<value_type>;

  OrderedMap() = default;
  OrderedMap(std::initializer_list<value_type> entries) : entries_(entries) {}
  /// Many entries at once, without a lookup for each; the caller makes sure that no key comes twice.
  explicit OrderedMap(Entries entries) : entries_(std::move(entries)) {}

  T* find(std::string_view key) {
    for (auto& [name, value] : entries_)
      if (name == key) return &value;
    return nullptr;
  }
  const T* find(std::string_view key) const { return const_cast<OrderedMap*>(this)->find(key); }
  bool contains(std::string_view key) const { return find(key) != nullptr; }
  /// The value under `key`, inserted with its default when missing.
  T& operator[](std::string_view key) {
    if (T* found = find(key)) return *found;
    return entries_.emplace_back(std::string(key), T{}).second;
  }
  /// Adds an entry that the caller knows to be new; unlike `[]` it does not look for one first.
  T& append(std::string key, T value) { return entries_.emplace_back(std::move(key), std::move(value)).second; }
  const T& at(std::string_view key) const {
    if (const T* found = find(key)) return *found;
    throw MisuseError("no entry named '" + std::string(key) + "'");
  }
  T& at(std::string_view key) { return const_cast<T&>(std::as_const(*this).at(key)); }
  bool erase(std::string_view key) {
    for (auto it = entries_.begin(); it != entries_.end(); ++it)
      if (it->first == key) return entries_.erase(it), true;
    return false;
  }
  void clear() { entries_.clear(); }
  bool empty() const { return entries_.empty(); }
  std::size_t size() const { return entries_.size(); }
  auto begin() { return entries_.begin(); }
  auto end() { return entries_.end(); }
  auto begin() const { return entries_.begin(); }
  auto end() const { return entries_.end(); }
  bool operator==(const OrderedMap& other) const requires std::equality_comparable<T> {
    if (size() != other.size()) return false;
    for (const auto& [key, value] : entries_) {
      const T* theirs = other.find(key);
      if (!theirs || !(*theirs == value)) return false;
    }
    return true;
  }

 private:
  Entries entries_;
};

/// A tree of plain values: null, bool, integer, float, string, the extra leaf types, lists and maps of trees.
/// `Tree` (no extra leaf) carries settings and metadata; `Value` (with tensors) carries state and collectives.
template <class... Leaves>
class BasicTree {
 public:
  using List = std::vector<BasicTree>;
  using Map = OrderedMap<BasicTree>;
  using Variant = std::variant<std::monostate, bool, std::int64_t, double, std::string, Leaves..., List, Map>;

  BasicTree() = default;
  template <std::same_as<bool> B>
  BasicTree(B value) : data_(value) {}
  template <std::integral I>
  requires(!std::same_as<I, bool>) BasicTree(I value) : data_(static_cast<std::int64_t>(value)) {}
  BasicTree(double value) : data_(value) {}
  BasicTree(float value) : data_(static_cast<double>(value)) {}
  BasicTree(std::string value) : data_(std::move(value)) {}
  BasicTree(std::string_view value) : data_(std::string(value)) {}
  BasicTree(const char* value) : data_(std::string(value)) {}
  BasicTree(List value) : data_(std::move(value)) {}
  BasicTree(Map value) : data_(std::move(value)) {}
  template <class L>
  requires(std::same_as<L, Leaves> || ...) BasicTree(L value) : data_(std::move(value)) {}

  template <class T>
  bool is() const {
    return std::holds_alternative<T>(data_);
  }
  bool is_null() const { return is<std::monostate>(); }
  bool is_bool() const { return is<bool>(); }
  bool is_int() const { return is<std::int64_t>(); }
  bool is_double() const { return is<double>(); }
  bool is_number() const { return is_int() || is_double(); }
  bool is_string() const { return is<std::string>(); }
  bool is_list() const { return is<List>(); }
  bool is_map() const { return is<Map>(); }

  /// The content as T; throws MisuseError naming both kinds when it is something else.
  template <class T>
  const T& as() const {
    if (const T* found = std::get_if<T>(&data_)) return *found;
    throw MisuseError(std::string("expected ") + kind_of<T>() + ", found " + kind());
  }
  template <class T>
  T& as() {
    return const_cast<T&>(std::as_const(*this).template as<T>());
  }
  bool as_bool() const { return as<bool>(); }
  std::int64_t as_int() const { return as<std::int64_t>(); }
  /// Integers convert.
  double as_double() const { return is_int() ? static_cast<double>(as_int()) : as<double>(); }
  const std::string& as_string() const { return as<std::string>(); }
  const List& as_list() const { return as<List>(); }
  List& as_list() { return as<List>(); }
  const Map& as_map() const { return as<Map>(); }
  Map& as_map() { return as<Map>(); }

  /// Access into a map; null becomes an empty map on the non-const way.
  BasicTree& operator[](std::string_view key) {
    if (is_null()) data_ = Map{};
    return as_map()[key];
  }
  const BasicTree& at(std::string_view key) const { return as_map().at(key); }
  BasicTree& at(std::string_view key) { return as_map().at(key); }
  const BasicTree* find(std::string_view key) const { return is_map() ? as_map().find(key) : nullptr; }

  Variant& variant() { return data_; }
  const Variant& variant() const { return data_; }

  const char* kind() const {
    return std::visit([](const auto& content) { return kind_of<std::decay_t<decltype(content)>>(); }, data_);
  }

  bool operator==(const BasicTree& other) const requires(sizeof...(Leaves) == 0) { return data_ == other.data_; }

 private:
  template <class T>
  static const char* kind_of() {
    if constexpr (std::same_as<T, std::monostate>)
      return "null";
    else if constexpr (std::same_as<T, bool>)
      return "a bool";
    else if constexpr (std::same_as<T, std::int64_t>)
      return "an integer";
    else if constexpr (std::same_as<T, double>)
      return "a float";
    else if constexpr (std::same_as<T, std::string>)
      return "a string";
    else if constexpr (std::same_as<T, List>)
      return "a list";
    else if constexpr (std::same_as<T, Map>)
      return "a map";
    else
      return "a tensor";
  }
  Variant data_;
};

using Tree = BasicTree<>;

}  // namespace fabric

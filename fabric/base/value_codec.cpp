#include "fabric/base/value_codec_internal.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/view_as_real.h>
#include <c10/util/Exception.h>

#include <fabric/base/error.h>

namespace fabric::collectives {
namespace {

// As deep as nested values may be: reading and writing them uses the stack.
constexpr int kMostLevels = 200;

enum class Tag : std::uint8_t { null, no, yes, integer, real, text, undefined, tensor, large_tensor, list, map };

class Writer {
 public:
  Writer(std::int64_t inline_limit, std::vector<at::Tensor>& large) : inline_limit_(inline_limit), large_(large) {}

  void value(const Value& value) {
    if (++level_ > kMostLevels)
      throw MisuseError("a collective takes values of at most " + std::to_string(kMostLevels) + " levels");
    std::visit([this](const auto& content) { write(content); }, value.variant());
    --level_;
  }
  std::vector<std::uint8_t> take() { return std::move(bytes_); }

 private:
  void raw(const void* data, std::size_t size) {
    auto end = bytes_.size();
    bytes_.resize(end + size);
    if (size > 0) std::memcpy(bytes_.data() + end, data, size);
  }
  void tag(Tag tag) { bytes_.push_back(static_cast<std::uint8_t>(tag)); }
  void number(std::int64_t number) { raw(&number, sizeof number); }
  void text(const std::string& text) {
    number(static_cast<std::int64_t>(text.size()));
    raw(text.data(), text.size());
  }

  void write(std::monostate) { tag(Tag::null); }
  void write(bool content) { tag(content ? Tag::yes : Tag::no); }
  void write(std::int64_t content) {
    tag(Tag::integer);
    number(content);
  }
  void write(double content) {
    tag(Tag::real);
    raw(&content, sizeof content);
  }
  void write(const std::string& content) {
    tag(Tag::text);
    text(content);
  }
  void write(const Value::List& list) {
    tag(Tag::list);
    number(static_cast<std::int64_t>(list.size()));
    for (const auto& item : list) value(item);
  }
  void write(const Value::Map& map) {
    tag(Tag::map);
    number(static_cast<std::int64_t>(map.size()));
    for (const auto& [key, item] : map) {
      text(key);
      value(item);
    }
  }
  void write(const at::Tensor& tensor) {
    if (!tensor.defined()) return tag(Tag::undefined);
    if (tensor.layout() != at::kStrided)
      throw MisuseError(
          "a collective on nested values takes dense tensors only; convert sparse ones with to_dense() first");
    bool is_large = static_cast<std::int64_t>(tensor.nbytes()) > inline_limit_;
    tag(is_large ? Tag::large_tensor : Tag::tensor);
    number(static_cast<std::int64_t>(tensor.scalar_type()));
    number(static_cast<std::int64_t>(tensor.device().type()));
    number(tensor.dim());
    for (auto size : tensor.sizes()) number(size);
    if (is_large) {
      large_.push_back(tensor.detach().contiguous());
    } else {
      auto data = bytes_of(tensor.cpu());
      raw(data.const_data_ptr(), data.nbytes());
    }
  }

  std::int64_t inline_limit_;
  std::vector<at::Tensor>& large_;
  std::vector<std::uint8_t> bytes_;
  int level_ = 0;
};

class Reader {
 public:
  Reader(const std::uint8_t* bytes, std::size_t size, c10::Device device, std::vector<at::Tensor>& large)
      : next_(bytes), end_(bytes + size), device_(device), large_(large) {}

  Value value() {
    if (++level_ > kMostLevels) damaged();
    auto read = content();
    --level_;
    return read;
  }
  bool at_end() const { return next_ == end_; }
  [[noreturn]] static void damaged() {
    throw CollectiveError("a value that another rank sent arrived damaged. Do all ranks run the same program?");
  }

 private:
  Value content() {
    switch (static_cast<Tag>(*take(1))) {
      case Tag::null:
        return {};
      case Tag::no:
        return false;
      case Tag::yes:
        return true;
      case Tag::integer:
        return number();
      case Tag::real: {
        double real = 0;
        std::memcpy(&real, take(sizeof real), sizeof real);
        return real;
      }
      case Tag::text:
        return text();
      case Tag::undefined:
        return at::Tensor();
      case Tag::tensor:
        return tensor(false);
      case Tag::large_tensor:
        return tensor(true);
      case Tag::list: {
        Value::List list;
        for (auto count = length(); count > 0; --count) list.push_back(value());
        return list;
      }
      case Tag::map: {
        Value::Map map;
        for (auto count = length(); count > 0; --count) {
          auto key = text();
          map[key] = value();
        }
        return map;
      }
    }
    damaged();
  }
  const std::uint8_t* take(std::size_t count) {
    if (static_cast<std::size_t>(end_ - next_) < count) damaged();
    return std::exchange(next_, next_ + count);
  }
  std::int64_t number() {
    std::int64_t number = 0;
    std::memcpy(&number, take(sizeof number), sizeof number);
    return number;
  }
  // Of a list, map or text: no longer than what is left, since each item takes a byte at least.
  std::int64_t length() {
    auto count = number();
    if (count < 0 || count > end_ - next_) damaged();
    return count;
  }
  std::string text() {
    auto count = static_cast<std::size_t>(length());
    return std::string(reinterpret_cast<const char*>(take(count)), count);
  }
  std::int64_t bytes_of_tensor(at::ScalarType type, const std::vector<std::int64_t>& sizes) {
    auto kind = static_cast<int>(type);
    if (kind < 0 || kind >= static_cast<int>(at::ScalarType::Undefined)) damaged();
    bool is_empty = std::find(sizes.begin(), sizes.end(), 0) != sizes.end();
    auto bytes = static_cast<std::int64_t>(c10::elementSize(type));
    for (auto size : sizes)
      if (size < 0 || (!is_empty && __builtin_mul_overflow(bytes, size, &bytes))) damaged();
    return is_empty ? 0 : bytes;
  }
  // On the word of another rank; the bytes of a large tensor come later.
  static at::Tensor memory_for(at::IntArrayRef sizes, const at::TensorOptions& options, std::int64_t bytes) {
    try {
      return at::empty(sizes, options);
    } catch (const c10::Error&) {
      throw CollectiveError("there is no memory for a tensor of " + std::to_string(bytes) + " bytes and type " +
                            c10::toString(options.dtype().toScalarType()) + " that another rank sends");
    }
  }
  at::Tensor tensor(bool is_large) {
    auto type = static_cast<at::ScalarType>(number());
    auto from = static_cast<c10::DeviceType>(number());
    std::vector<std::int64_t> sizes(static_cast<std::size_t>(length()));
    for (auto& size : sizes) size = number();
    auto bytes = bytes_of_tensor(type, sizes);
    // Known to be there before memory for it is asked for; a large tensor's bytes come later.
    if (!is_large && bytes > end_ - next_) damaged();
    auto target = from == device_.type() ? device_ : c10::Device(c10::kCPU);
    if (is_large) return large_.emplace_back(memory_for(sizes, at::TensorOptions(target).dtype(type), bytes));
    auto made = memory_for(sizes, at::TensorOptions(c10::kCPU).dtype(type), bytes);
    if (made.nbytes() > 0) std::memcpy(made.mutable_data_ptr(), take(made.nbytes()), made.nbytes());
    return made.to(target);
  }

  const std::uint8_t* next_;
  const std::uint8_t* end_;
  c10::Device device_;
  std::vector<at::Tensor>& large_;
  int level_ = 0;
};

}  // namespace

at::Tensor bytes_of(const at::Tensor& tensor) {
  auto flat = tensor.detach();
  if (flat.is_complex()) flat = at::view_as_real(flat.resolve_conj());
  if (flat.is_neg()) flat = flat.resolve_neg();
  return flat.contiguous().view({-1}).view(at::kByte);
}

std::vector<std::uint8_t> encode(const Value& value, std::int64_t inline_limit, std::vector<at::Tensor>& large) {
  Writer writer(inline_limit, large);
  writer.value(value);
  return writer.take();
}

Value decode(const std::uint8_t* bytes, std::size_t size, c10::Device device, std::vector<at::Tensor>& large) {
  Reader reader(bytes, size, device, large);
  auto value = reader.value();
  if (!reader.at_end()) Reader::damaged();
  return value;
}

}  // namespace fabric::collectives

#include "plugins/checkpoint_io/torch/torch_writer.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <tuple>
#include <vector>

#include <c10/util/strides.h>

#include <fabric/base/atomic_file_internal.h>
#include <fabric/base/error.h>

#include "fabric/config/scalar_internal.h"
#include "plugins/checkpoint_io/tensor_bytes.h"
#include "plugins/checkpoint_io/torch/pickle_writer.h"
#include "plugins/checkpoint_io/torch/torch_types.h"
#include "plugins/checkpoint_io/torch/zip_writer.h"

namespace fabric::checkpoint {
namespace {

constexpr int kDeepestWritten = 60;
constexpr std::size_t kLongestWritten = UINT32_MAX;

const TorchType& torch_type(const at::Tensor& tensor, const std::string& path) {
  for (const auto& known : kTorchTypes)
    if (known.type == tensor.scalar_type()) return known;
  throw CheckpointError("the tensor '" + path + "' cannot be saved: its type " + c10::toString(tensor.scalar_type()) +
                        " is not supported; convert it first");
}

bool is_number(const std::string& key) {
  std::int64_t value = 0;
  auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), value);
  return error == std::errc() && end == key.data() + key.size() && value >= 0 && std::to_string(value) == key;
}

bool is_optimizer_state(const Value& value) {
  const Value* state = value.find("state");
  const Value* groups = value.find("param_groups");
  return state && state->is_map() && groups && groups->is_list() &&
         std::all_of(state->as_map().begin(), state->as_map().end(),
                     [](const auto& entry) { return is_number(entry.first); });
}

class Composer {
 public:
  void value(const Value& value, const std::string& path, int depth) {
    if (depth > kDeepestWritten)
      throw CheckpointError("the value at '" + path.substr(0, 80) + "…' is nested deeper than " +
                            std::to_string(kDeepestWritten) + " levels");
    if (value.is_null())
      out_.none();
    else if (value.is_bool())
      out_.boolean(value.as_bool());
    else if (value.is_int())
      out_.integer(value.as_int());
    else if (value.is_double())
      out_.real(value.as_double());
    else if (value.is_string())
      text(value.as_string());
    else if (value.is_list())
      list(value.as_list(), path, depth);
    else if (value.is_map())
      map(value, path, depth);
    else
      tensor(value.as<at::Tensor>(), path);
  }
  std::string take() { return out_.take(); }
  /// What the storages "0", "1", … hold.
  const std::vector<at::Tensor>& storages() const { return storages_; }

 private:
  static std::string below(const std::string& path, const std::string& key) {
    return path.empty() ? key : path + "." + key;
  }

  void text(const std::string& value) {
    if (value.size() > kLongestWritten / 2)
      throw CheckpointError("the checkpoint holds a string of " + std::to_string(value.size()) +
                            " bytes; keep large data in tensors");
    if (detail::find_invalid_utf8(value) == value.npos)
      out_.text(value);
    else
      out_.bytes(value);
  }

  void list(const Value::List& items, const std::string& path, int depth) {
    out_.empty_list();
    if (items.empty()) return;
    out_.mark();
    for (std::size_t i = 0; i < items.size(); ++i) value(items[i], below(path, std::to_string(i)), depth + 1);
    out_.append_since_mark();
  }

  void map(const Value& map, const std::string& path, int depth, bool numbered = false) {
    out_.empty_dict();
    if (map.as_map().empty()) return;
    const bool optimizer = is_optimizer_state(map);
    out_.mark();
    for (const auto& [key, item] : map.as_map()) {
      if (numbered)
        out_.integer(std::stoll(key));
      else
        text(key);
      if (optimizer && key == "state")
        this->map(item, below(path, key), depth + 1, true);
      else
        value(item, below(path, key), depth + 1);
    }
    out_.set_items_since_mark();
  }

  void tensor(const at::Tensor& tensor, const std::string& path) {
    if (!tensor.defined()) return out_.none();
    const at::Tensor plain = storable(tensor, path);
    const TorchType& type = torch_type(plain, path);
    out_.global("torch._utils", type.storage.empty() ? "_rebuild_tensor_v3" : "_rebuild_tensor_v2");
    out_.mark();
    storage(tensor, plain, type);
    out_.integer(0);
    sizes(plain.sizes());
    sizes(c10::contiguous_strides(plain.sizes()));
    out_.boolean(false);
    out_.global("collections", "OrderedDict");
    out_.empty_tuple();
    out_.call();
    if (type.storage.empty()) out_.global("torch", type.dtype);
    out_.tuple();
    out_.call();
  }

  // Tensors over the same memory share one storage, so that tied weights stay tied in Python. That is seen where the
  // checkpoint has them: their copies, from a GPU say, have memory of their own, whose address may come again.
  void storage(const at::Tensor& given, const at::Tensor& tensor, const TorchType& type) {
    std::size_t number = storages_.size();
    const bool in_place = tensor.nbytes() > 0 && tensor.is_contiguous() && !given._is_zerotensor() &&
                          tensor.const_data_ptr() == given.const_data_ptr();
    if (in_place)
      number =
          numbers_.try_emplace({tensor.const_data_ptr(), tensor.nbytes(), tensor.scalar_type()}, number).first->second;
    if (number == storages_.size()) storages_.push_back(tensor.cpu().contiguous());
    out_.mark();
    out_.text("storage");
    if (type.storage.empty())
      out_.global("torch.storage", "UntypedStorage");
    else
      out_.global("torch", type.storage);
    out_.text(std::to_string(number));
    out_.text("cpu");
    out_.integer(type.storage.empty() ? static_cast<std::int64_t>(tensor.nbytes()) : tensor.numel());
    out_.tuple();
    out_.persistent();
  }

  void sizes(at::IntArrayRef values) {
    out_.mark();
    for (auto value : values) out_.integer(value);
    out_.tuple();
  }

  PickleWriter out_;
  std::vector<at::Tensor> storages_;
  std::map<std::tuple<const void*, std::size_t, c10::ScalarType>, std::size_t> numbers_;
};

}  // namespace

void write_torch(const Value& checkpoint, const std::filesystem::path& path) {
  Composer composer;
  composer.value(checkpoint, "", 0);
  const std::string pickle = composer.take();
  AtomicFile file(path, as_error<CheckpointError>);
  ZipWriter zip(file);
  zip.add("archive/data.pkl", pickle);
  zip.add("archive/byteorder", "little");
  for (std::size_t i = 0; i < composer.storages().size(); ++i)
    zip.add("archive/data/" + std::to_string(i), [&](const auto& use) { for_each_piece(composer.storages()[i], use); });
  zip.add("archive/version", "3\n");
  zip.finish();
  file.commit();
}

}  // namespace fabric::checkpoint

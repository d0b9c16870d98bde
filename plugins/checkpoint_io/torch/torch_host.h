#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include <ATen/core/Tensor.h>

#include "plugins/checkpoint_io/mapped_file.h"
#include "plugins/checkpoint_io/torch/pickle_reader.h"

namespace fabric::checkpoint {

/// The type of "torch.float32" or "torch.FloatStorage"; none for other names.
std::optional<c10::ScalarType> torch_dtype(std::string_view name);
std::optional<c10::ScalarType> torch_storage_type(std::string_view name);
/// True for "torch.storage.UntypedStorage" too, whose bytes are of any type.
bool is_torch_storage(std::string_view name);

/// Where a file keeps the bytes of its storages.
class StorageBytes {
 public:
  struct Place {
    std::byte* data = nullptr;
    std::uint64_t size = 0;
  };
  virtual ~StorageBytes() = default;
  /// Throws CheckpointCorrupt when the file lacks them.
  virtual Place find(const std::string& key) const = 0;
};

/// Rebuilds what torch.save took apart, of a closed list of classes and functions. Every argument of theirs is honoured
/// or refused by name, but for two that say nothing about values: whether a tensor wants a gradient, and attributes
/// that Python hung on it.
class TorchHost : public PickleHost {
 public:
  /// `passes_over`: classes that are not on the list become marks; else they are an error.
  TorchHost(std::shared_ptr<MappedFile> file, const StorageBytes& storages, bool passes_over);

  bool allows(const std::string& name) override;
  Id call(PickleReader& pickle, const std::string& name, Id arguments) override;
  Id persistent(PickleReader& pickle, Id id) override;

  /// The tensor that an object node stands for.
  const at::Tensor& tensor_of(const PickleReader::Node& node) const;

 private:
  using Node = PickleReader::Node;
  using Arguments = std::vector<Id>;
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

  Memory memory(const std::string& key);
  Storage storage(const std::string& key, std::optional<c10::ScalarType> type, std::int64_t count);
  void narrow(const PickleReader& pickle, const Node& view, Storage& storage) const;

  Id keep(PickleReader& pickle, at::Tensor tensor);
  Id tensor(PickleReader& pickle, const Arguments& args, std::optional<c10::ScalarType> type,
            std::optional<Id> properties);
  at::Tensor view(const Storage& storage, c10::ScalarType type, std::uint64_t offset,
                  const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& strides);
  at::Tensor with_properties(const PickleReader& pickle, const Node& properties, at::Tensor tensor);
  void spend(std::uint64_t bytes, const std::string& on);
  Id parameter(PickleReader& pickle, const Arguments& args);
  Id subclass(PickleReader& pickle, const Arguments& args);
  Id sparse(PickleReader& pickle, const Arguments& args);

  std::shared_ptr<MappedFile> file_;
  const StorageBytes& bytes_of_;
  bool passes_over_;
  std::unordered_map<std::string, Memory> memories_;
  std::vector<Storage> storages_;
  std::vector<at::Tensor> tensors_;
  std::uint64_t expanded_left_;
};

/// Calls that make plain values: dicts, lists, texts.
bool makes_plain_value(std::string_view name);
/// None when `name` is no such call.
std::optional<PickleHost::Id> call_for_plain_value(PickleReader& pickle, const std::string& name,
                                                   const std::vector<PickleHost::Id>& args);
[[noreturn]] void wrong_pickle(const std::string& why);

}  // namespace fabric::checkpoint

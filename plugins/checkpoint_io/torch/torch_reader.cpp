#include "plugins/checkpoint_io/torch/torch_reader.h"

#include <fabric/base/error.h>

#include "plugins/checkpoint_io/torch/pickle_reader.h"
#include "plugins/checkpoint_io/torch/torch_host.h"
#include "plugins/checkpoint_io/torch/torch_legacy.h"
#include "plugins/checkpoint_io/torch/torch_values.h"
#include "plugins/checkpoint_io/torch/zip_reader.h"

namespace fabric::checkpoint {
namespace {

class ArchiveStorages : public StorageBytes {
 public:
  ArchiveStorages(const ZipReader& archive, std::string prefix) : archive_(archive), prefix_(std::move(prefix)) {}
  Place find(const std::string& key) const override {
    const auto* entry = archive_.find(prefix_ + "data/" + key);
    if (!entry) throw CheckpointCorrupt("the archive lacks the data of storage '" + key + "'");
    return {archive_.file()->data() + entry->offset, entry->size};
  }

 private:
  const ZipReader& archive_;
  std::string prefix_;
};

/// The folder in the archive that holds everything, with its slash.
std::string find_prefix(const ZipReader& archive) {
  std::string prefix;
  bool found = false;
  for (const auto& [name, entry] : archive.entries()) {
    if (name.ends_with("/constants.pkl"))
      throw CheckpointError(
          "it is an archive of C++'s torch::save or of TorchScript, which holds a program. In C++ read it with "
          "torch::load (TorchScript: torch::jit::load) into the module that it was saved from, and write that with "
          "fabric.save(path, {{\"model\", module}}); in Python save the state_dict() of torch.jit.load");
    if (!name.ends_with("/data.pkl")) continue;
    if (found) throw CheckpointCorrupt("the archive has two files data.pkl");
    found = true;
    prefix = name.substr(0, name.size() - std::string_view("data.pkl").size());
  }
  if (!found) throw CheckpointCorrupt("the zip archive has no data.pkl, so torch.save did not write it");
  return prefix;
}

bool looks_like_zip(const MappedFile& file) { return file.size() > 4 && file.text(0, 4) == "PK\3\4"; }

template <class Use>
CheckpointPart read_archive(const std::shared_ptr<MappedFile>& file, bool whole, bool verify, Use&& use) {
  ZipReader archive(file);
  const std::string prefix = find_prefix(archive);
  if (const auto* order = archive.find(prefix + "byteorder"); order && archive.bytes(*order) != "little")
    throw CheckpointError("its numbers are in " + std::string(archive.bytes(*order).substr(0, 16)) +
                          "-endian order, not little");
  std::string_view bytes = archive.bytes(*archive.find(prefix + "data.pkl"));
  if (bytes.size() > kMostPickleBytes)
    throw CheckpointError("its data.pkl has more than 64 MiB; keep large data in tensors");
  if (file->populate() && verify) archive.verify();
  ArchiveStorages storages(archive, prefix);
  TorchHost host(file, storages, !whole);
  PickleReader pickle(bytes, host);
  PickleReader::Id root = pickle.read();
  return use(pickle, host, root);
}

CheckpointPart read_either(const std::shared_ptr<MappedFile>& file, const std::string& key, bool whole, bool verify) {
  if (!looks_like_zip(*file)) return read_legacy_torch(file, key, whole);
  auto use = [&](const PickleReader& pickle, const TorchHost& host, PickleReader::Id root) {
    return values_of(pickle, host, root, key, whole);
  };
  return read_archive(file, whole, verify, use);
}

}  // namespace

bool is_torch_archive(const MappedFile& file) { return looks_like_zip(file); }

bool looks_like_torch(const MappedFile& file) { return looks_like_zip(file) || looks_like_legacy_torch(file); }

Value read_torch(const std::shared_ptr<MappedFile>& file, bool verify) {
  return read_either(file, "", true, verify).value;
}

CheckpointPart read_torch_part(const std::shared_ptr<MappedFile>& file, const std::string& key, bool verify) {
  return read_either(file, key, false, verify);
}

CheckpointPart read_torch_entry(const std::shared_ptr<MappedFile>& archive, bool verify) {
  if (!looks_like_zip(*archive)) throw CheckpointCorrupt("it is no archive that PyTorch's torch.save wrote");
  auto use = [](const PickleReader& pickle, const TorchHost& host, PickleReader::Id root) {
    if (pickle[root].kind == PickleReader::Kind::foreign)
      return CheckpointPart{{}, {}, {std::string(pickle[root].text.substr(0, 200))}};
    return values_of(pickle, host, root, "", false);
  };
  return read_archive(archive, false, verify, use);
}

}  // namespace fabric::checkpoint

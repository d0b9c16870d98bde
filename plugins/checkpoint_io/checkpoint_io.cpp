#include <fabric/plugins/checkpoint_io/checkpoint_io.h>

#include <new>

#include <c10/util/Exception.h>

#include "fabric/base/registry/registry_internal.h"
#include "fabric/torch/messages_internal.h"
#include "plugins/checkpoint_io/mapped_file.h"
#include "plugins/checkpoint_io/safetensors/safetensors.h"
#include "plugins/checkpoint_io/torch/torch_reader.h"
#include "plugins/checkpoint_io/torch/torch_writer.h"

namespace fabric {
namespace {

using checkpoint::MappedFile;

// Every format is recognised by its bytes, so that a file can be loaded whatever it is called and whoever wrote it.
Value read_any(const std::shared_ptr<MappedFile>& file) {
  if (file->size() == 0) throw CheckpointCorrupt("it is empty");
  if (checkpoint::looks_like_safetensors(*file)) return checkpoint::read_safetensors(file);
  if (checkpoint::looks_like_torch(*file)) return checkpoint::read_torch(file);
  throw CheckpointCorrupt("it is neither a safetensors file nor one that PyTorch's torch.save wrote");
}

Value load_file(const std::filesystem::path& path) {
  auto file = MappedFile::open(path);
  const std::string where = "cannot load the checkpoint '" + path.string() + "': ";
  const std::string no_memory = where + "there is not enough memory";
  try {
    return read_any(file);
  } catch (const CheckpointCorrupt& error) {
    throw CheckpointCorrupt(where + error.what());
  } catch (const CheckpointError& error) {
    throw CheckpointError(where + error.what());
  } catch (const c10::Error& error) {
    if (torch_messages::lacks_memory(error)) throw CheckpointError(no_memory);
    throw CheckpointCorrupt(where + error.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    throw CheckpointError(no_memory);
  }
}

class SafetensorsIO : public CheckpointIO {
 public:
  std::string name() const override { return "safetensors"; }
  void save(const Value& value, const std::filesystem::path& path) override {
    checkpoint::write_safetensors(value, path);
  }
  Value load(const std::filesystem::path& path) override { return load_file(path); }
};

class TorchIO : public CheckpointIO {
 public:
  std::string name() const override { return "torch"; }
  void save(const Value& value, const std::filesystem::path& path) override { checkpoint::write_torch(value, path); }
  Value load(const std::filesystem::path& path) override { return load_file(path); }
};

Registry<MakeCheckpointIO>& checkpoint_io_registry() {
  static Registry<MakeCheckpointIO> all(
      "checkpoint format", {{"safetensors", [] { return std::make_shared<SafetensorsIO>(); }, "one safetensors file"},
                            {"torch", [] { return std::make_shared<TorchIO>(); }, "a file for Python's torch.load"}});
  return all;
}

}  // namespace

CheckpointIO::CheckpointIO() = default;
CheckpointIO::~CheckpointIO() = default;

AsyncWriter& CheckpointIO::async() {
  if (!async_) async_ = std::make_unique<AsyncWriter>();
  return *async_;
}

void CheckpointIO::remove(const std::filesystem::path& path) {
  if (path.lexically_normal().relative_path().empty())
    throw MisuseError("'" + path.string() + "' is no checkpoint to remove");
  std::error_code error;
  std::filesystem::remove_all(path, error);
  if (error) throw CheckpointError("cannot remove the checkpoint '" + path.string() + "': " + error.message());
}

std::shared_ptr<CheckpointIO> make_checkpoint_io(const std::string& name) {
  auto [known, make, description] = checkpoint_io_registry().get(name);
  auto io = make();
  if (!io) throw MisuseError("the function registered for checkpoint format '" + known + "' returned nothing");
  return io;
}

void register_checkpoint_io(const std::string& name, MakeCheckpointIO make, bool override_existing,
                            std::string description) {
  checkpoint_io_registry().add(name, std::move(make), override_existing, std::move(description));
}

std::vector<std::string> available_checkpoint_ios() { return checkpoint_io_registry().names(); }

}  // namespace fabric

#include <fabric/plugins/checkpoint_io/checkpoint_io.h>

#include <new>
#include <string_view>

#include <c10/util/Exception.h>

#include <fabric/base/nearest_name.h>

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

// What the CPU's allocator throws differs from other errors of LibTorch by its words alone.
bool lacks_memory(const c10::Error& error) {
  return dynamic_cast<const c10::OutOfMemoryError*>(&error) ||
         std::string_view(error.what_without_backtrace()).find("allocate memory") != std::string_view::npos;
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
    if (lacks_memory(error)) throw CheckpointError(no_memory);
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

}  // namespace

void CheckpointIO::remove(const std::filesystem::path& path) {
  if (path.lexically_normal().relative_path().empty())
    throw MisuseError("'" + path.string() + "' is no checkpoint to remove");
  std::error_code error;
  std::filesystem::remove_all(path, error);
  if (error) throw CheckpointError("cannot remove the checkpoint '" + path.string() + "': " + error.message());
}

std::shared_ptr<CheckpointIO> make_checkpoint_io(const std::string& name) {
  if (name == "safetensors") return std::make_shared<SafetensorsIO>();
  if (name == "torch") return std::make_shared<TorchIO>();
  throw ConfigError("there is no checkpoint format '" + name + "'" + did_you_mean(name, {"safetensors", "torch"}));
}

}  // namespace fabric

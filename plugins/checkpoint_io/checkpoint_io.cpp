#include <fabric/plugins/checkpoint_io/checkpoint_io.h>

#include <new>
#include <optional>
#include <vector>

#include <c10/util/Exception.h>

#include <fabric/base/log.h>
#include <fabric/base/nearest_name.h>
#include <fabric/plugins/checkpoint_io/checkpoint_part.h>
#include <fabric/plugins/checkpoint_io/read_options.h>

#include "fabric/base/registry/registry_internal.h"
#include "fabric/torch/messages_internal.h"
#include "plugins/checkpoint_io/dcp/dcp_reader.h"
#include "plugins/checkpoint_io/open_checkpoint.h"
#include "plugins/checkpoint_io/safetensors/safetensors.h"
#include "plugins/checkpoint_io/safetensors/weight_map.h"
#include "plugins/checkpoint_io/sharded/sharded_io.h"
#include "plugins/checkpoint_io/torch/torch_reader.h"
#include "plugins/checkpoint_io/torch/torch_writer.h"

namespace fabric {
namespace {

using checkpoint::DcpUse;
using checkpoint::is_torch_file;
using checkpoint::MappedFile;
using OpenFiles = std::vector<std::shared_ptr<MappedFile>>;

Value read_any(const std::shared_ptr<MappedFile>& file, bool verify) {
  return is_torch_file(*file) ? checkpoint::read_torch(file, verify) : checkpoint::read_safetensors(file, verify);
}

// Keys may hold dots, so the longest one that fits is taken first.
const Value* find_part(const Value& value, std::string_view key) {
  if (const Value* found = value.find(key)) return found;
  for (auto dot = key.rfind('.'); dot != key.npos && dot > 0; dot = key.rfind('.', dot - 1))
    if (const Value* inner = value.find(key.substr(0, dot)))
      if (const Value* found = find_part(*inner, key.substr(dot + 1))) return found;
  return nullptr;
}

CheckpointPart part_of(const Value& whole, const std::string& key) {
  if (key.empty()) return {whole, {}, {}};
  if (const Value* found = find_part(whole, key)) return {*found, {}, {}};
  std::vector<std::string> keys;
  if (whole.is_map())
    for (const auto& [name, item] : whole.as_map()) keys.push_back(name);
  throw CheckpointKeyError("the checkpoint has no '" + key + "'" + did_you_mean(key, keys));
}

CheckpointPart read_any_part(const std::shared_ptr<MappedFile>& file, const std::string& key, bool verify) {
  return is_torch_file(*file) ? checkpoint::read_torch_part(file, key, verify)
                              : part_of(checkpoint::read_safetensors(file, verify), key);
}

// Errors say which checkpoint they are about.
template <class Read>
auto naming(const std::filesystem::path& path, Read&& read) {
  const std::string begins = "cannot load the checkpoint '";
  const std::string where = begins + path.string() + "': ";
  const std::string no_memory = where + "there is not enough memory";
  // A tensor that may be read much later says it itself.
  auto named = [&](const std::string& text) { return text.starts_with(begins) ? text : where + text; };
  try {
    return read();
  } catch (const CheckpointCorrupt& error) {
    throw CheckpointCorrupt(named(error.what()));
  } catch (const CheckpointKeyError& error) {
    throw CheckpointKeyError(named(error.what()));
  } catch (const CheckpointError& error) {
    throw CheckpointError(named(error.what()));
  } catch (const c10::Error& error) {
    if (torch_messages::lacks_memory(error)) throw CheckpointError(no_memory);
    throw CheckpointCorrupt(where + error.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    throw CheckpointError(no_memory);
  }
}

template <class Read>
auto load_file(const std::filesystem::path& path, Read read) {
  auto file = MappedFile::open(path);
  return naming(path, [&] { return read(file); });
}

// Checkpoints of several files, with their tensors still in these, which are added to `files`; nothing where `path` is
// one file.
std::optional<CheckpointPart> open_several(const std::filesystem::path& path, DcpUse use, bool verify,
                                           OpenFiles* files = nullptr) {
  if (checkpoint::looks_sharded(path)) return CheckpointPart{checkpoint::open_sharded(path, verify, files), {}, {}};
  if (checkpoint::looks_like_dcp(path))
    return naming(path, [&] { return checkpoint::open_dcp(path, use, verify, files); });
  const auto index = checkpoint::find_weight_map(path);
  if (!index) return std::nullopt;
  return naming(path, [&] {
    auto read = [&](const std::filesystem::path& of) {
      auto file = MappedFile::open(of);
      if (use != DcpUse::whole) file->peek();
      if (files) files->push_back(file);
      return read_any(file, verify);
    };
    return CheckpointPart{checkpoint::read_weight_map(*index, read), {}, {}};
  });
}

CheckpointPart part_of_several(const CheckpointPart& whole, const std::string& key) {
  CheckpointPart out = part_of(whole.value, key);
  for (const auto& item : whole.left_out)
    (key.empty() || item.starts_with(key + ".") || item.starts_with(key + ":") ? out.left_out : out.passed_over)
        .push_back(item);
  return out;
}

Value load_any(const std::filesystem::path& path, bool verify) {
  if (auto several = open_several(path, DcpUse::whole, verify))
    return naming(path, [&] { return in_memory(std::move(several->value)); });
  return load_file(path, [&](const auto& file) { return read_any(file, verify); });
}

// Whoever opens a file asks for some of it: what only Python can rebuild is passed over, with a word.
Value open_any(const std::filesystem::path& path, bool verify) {
  auto several = open_several(path, DcpUse::parts, verify);
  CheckpointPart part = several ? std::move(*several) : load_checkpoint_part(path, "", {.verify = verify});
  std::string list;
  for (const auto& item : part.left_out) list += (list.empty() ? "" : ", ") + item;
  if (!list.empty())
    log::rank_zero_warn('\'' + path.string() + "' holds Python objects, which are passed over: " + list);
  return std::move(part.value);
}

class SafetensorsIO : public CheckpointIO, public checkpoint::ReadsFiles {
 public:
  std::string name() const override { return "safetensors"; }
  void save(const Value& value, const std::filesystem::path& path) override {
    checkpoint::write_safetensors(value, path);
  }
  Value load(const std::filesystem::path& path) override { return load_any(path, verify); }
  Value open(const std::filesystem::path& path) override { return open_any(path, verify); }
};

class TorchIO : public CheckpointIO, public checkpoint::ReadsFiles {
 public:
  std::string name() const override { return "torch"; }
  void save(const Value& value, const std::filesystem::path& path) override { checkpoint::write_torch(value, path); }
  Value load(const std::filesystem::path& path) override { return load_any(path, verify); }
  Value open(const std::filesystem::path& path) override { return open_any(path, verify); }
};

Registry<MakeCheckpointIO>& checkpoint_io_registry() {
  static Registry<MakeCheckpointIO> all(
      "checkpoint format", {{"safetensors", [] { return std::make_shared<SafetensorsIO>(); }, "one safetensors file"},
                            {"torch", [] { return std::make_shared<TorchIO>(); }, "a file for Python's torch.load"},
                            {"sharded", checkpoint::make_sharded_io, "a folder that every rank writes its part of"}});
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

CheckpointPart load_checkpoint_part(const std::filesystem::path& path, const std::string& key) {
  return load_checkpoint_part(path, key, CheckpointReadOptions{});
}

CheckpointPart load_checkpoint_part(const std::filesystem::path& path, const std::string& key,
                                    const CheckpointReadOptions& options) {
  if (auto several = open_several(path, DcpUse::peek, options.verify))
    return naming(path, [&] {
      auto part = part_of_several(*several, key);
      part.value = in_memory(std::move(part.value));
      return part;
    });
  return load_file(path, [&](const auto& file) { return read_any_part(file, key, options.verify); });
}

Value peek_checkpoint(const std::filesystem::path& path) {
  if (auto several = open_several(path, DcpUse::peek, true)) return std::move(several->value);
  return checkpoint::open_checkpoint(path).value;
}

// Every format is recognised by its bytes, so that a file can be loaded whatever it is called and whoever wrote it.
bool checkpoint::is_torch_file(const MappedFile& file) {
  if (file.size() == 0) throw CheckpointCorrupt("it is empty");
  if (looks_like_safetensors(file)) return false;
  if (looks_like_torch(file)) return true;
  throw CheckpointCorrupt("it is neither a safetensors file nor one that PyTorch's torch.save wrote");
}

checkpoint::OpenCheckpoint checkpoint::open_checkpoint(const std::filesystem::path& path) {
  OpenCheckpoint out;
  if (auto several = open_several(path, DcpUse::pieces, true, &out.files)) {
    if (!several->left_out.empty())
      throw CheckpointError("cannot load the checkpoint '" + path.string() + "': it holds the Python object " +
                            several->left_out[0] + "; fabric convert --key takes a part without such");
    out.value = std::move(several->value);
    return out;
  }
  out.value = load_file(path, [&](const auto& file) {
    file->peek();
    out.files.push_back(file);
    return read_any(file, true);
  });
  return out;
}

std::shared_ptr<CheckpointIO> make_checkpoint_io(const std::string& name) {
  auto [known, make, description] = checkpoint_io_registry().get(name);
  auto io = make();
  if (!io) throw MisuseError("the function registered for checkpoint format '" + known + "' returned nothing");
  return io;
}

std::shared_ptr<CheckpointIO> make_checkpoint_io(const std::string& name, const CheckpointReadOptions& options) {
  auto io = make_checkpoint_io(name);
  if (auto* reads = dynamic_cast<checkpoint::ReadsFiles*>(io.get())) reads->verify = options.verify;
  return io;
}

void register_checkpoint_io(const std::string& name, MakeCheckpointIO make, bool override_existing,
                            std::string description) {
  checkpoint_io_registry().add(name, std::move(make), override_existing, std::move(description));
}

std::vector<std::string> available_checkpoint_ios() { return checkpoint_io_registry().names(); }

}  // namespace fabric

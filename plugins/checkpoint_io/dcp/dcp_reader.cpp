// Reading a folder of Python's torch.distributed.checkpoint: `.metadata` says of each name which boxes it is made of
// and where in the files `__RANK_N.distcp` each of them lies, as an archive of torch.save. A file `meta.pt` beside it,
// which Lightning writes, holds the entries that are neither models nor optimizers.
//
// Invariant: a box is given to a tensor only when the archive's own type and shape are those that `.metadata` promises.
#include "plugins/checkpoint_io/dcp/dcp_reader.h"

#include <optional>
#include <unordered_map>

#include <fabric/base/error.h>
#include <fabric/state/sharding.h>

#include "plugins/checkpoint_io/boxes.h"
#include "plugins/checkpoint_io/dcp/dcp_metadata.h"
#include "plugins/checkpoint_io/dcp/dcp_tree.h"
#include "plugins/checkpoint_io/mapped_file.h"
#include "plugins/checkpoint_io/names.h"
#include "plugins/checkpoint_io/torch/torch_reader.h"

namespace fabric::checkpoint {
namespace {

namespace fs = std::filesystem;
using Archive = std::shared_ptr<MappedFile>;

std::string entry_text(const std::string& name) { return "its entry '" + name.substr(0, kShownName) + "'"; }

/// One tensor, of which the archives hold boxes.
class DcpTensor : public StoredTensor {
 public:
  struct Piece {
    std::vector<std::int64_t> offsets, shape;
    Archive archive;
  };
  DcpTensor(std::string name, c10::ScalarType type, bool verify)
      : name_(std::move(name)), type_(type), verify_(verify) {}
  void add(Piece piece) { pieces_.push_back(std::move(piece)); }

  void read(at::IntArrayRef offsets, at::Tensor& into) const override {
    for (const auto& piece : pieces_)
      if (touches(piece, offsets, into.sizes())) copy_common(content(piece), piece.offsets, into, offsets);
  }
  /// Once, instead of each time that something is read.
  void check() {
    for (auto& piece : pieces_) {
      content(piece);
      piece.archive->peek();
    }
  }

 private:
  static bool touches(const Piece& piece, at::IntArrayRef offsets, at::IntArrayRef sizes) {
    for (std::size_t d = 0; d < sizes.size(); ++d)
      if (piece.offsets[d] >= offsets[d] + sizes[d] || offsets[d] >= piece.offsets[d] + piece.shape[d]) return false;
    return true;
  }
  at::Tensor content(const Piece& piece) const {
    return within(entry_text(name_), [&] {
      Value value = read_torch(piece.archive, verify_);
      const auto* tensor = value.is<at::Tensor>() ? &value.as<at::Tensor>() : nullptr;
      if (!tensor || !tensor->defined() || tensor->layout() != c10::kStrided || tensor->scalar_type() != type_ ||
          tensor->sizes() != at::IntArrayRef(piece.shape))
        throw CheckpointCorrupt("a part of it is not of the type and shape that .metadata promises");
      return *tensor;
    });
  }
  std::string name_;
  c10::ScalarType type_;
  bool verify_;
  std::vector<Piece> pieces_;
};

class DcpFolder {
 public:
  DcpFolder(fs::path folder, DcpUse use, bool verify) : folder_(std::move(folder)), use_(use), verify_(verify) {}

  CheckpointPart read(std::vector<Archive>* files) {
    const auto entries = open_entries();
    DcpTree tree;
    for (const auto& entry : entries)
      if (auto value = value_of(entry)) tree.add(entry, std::move(*value));
    part_.value = tree.take();
    add_rest();
    if (files)
      for (const auto& [name, file] : files_) files->push_back(file);
    return std::move(part_);
  }

  void visit(const std::function<void(const DcpEntry&, const std::vector<Archive>&)>& visitor) {
    for (const auto& entry : open_entries()) {
      std::vector<Archive> archives;
      for (const auto& chunk : entry.chunks) archives.push_back(archive(entry, chunk.place));
      visitor(entry, archives);
    }
  }

 private:
  std::vector<DcpEntry> open_entries() {
    const auto metadata = MappedFile::open(folder_ / kDcpMetadata);
    auto entries = parse_dcp_metadata(metadata->text(0, metadata->size()));
    open_files(entries);
    return entries;
  }

  void open_files(const std::vector<DcpEntry>& entries) {
    NameList missing;
    std::error_code error;
    for (const auto& entry : entries)
      for (const auto& chunk : entry.chunks) {
        auto [file, is_new] = files_.emplace(chunk.place.file, nullptr);
        if (!is_new) continue;
        if (fs::exists(folder_ / chunk.place.file, error))
          file->second = MappedFile::open(folder_ / chunk.place.file);
        else
          missing.add(chunk.place.file);
      }
    if (!missing.empty()) throw CheckpointCorrupt("files that its .metadata names are missing: " + missing.text());
  }

  Archive archive(const DcpEntry& entry, const DcpPlace& place) const {
    const auto& file = files_.at(place.file);
    if (place.offset > file->size() || place.length > file->size() - place.offset)
      throw CheckpointCorrupt("'" + entry.name.substr(0, kShownName) + "' should lie in its file '" + place.file +
                              "' up to byte " + std::to_string(place.offset + place.length) + ", but that has only " +
                              std::to_string(file->size()) + ": it is torn");
    return MappedFile::part(file, place.offset, place.length);
  }

  // None for an object that only Python could make.
  std::optional<Value> value_of(const DcpEntry& entry) {
    if (entry.type) return tensor(entry);
    const Archive stored = archive(entry, entry.chunks[0].place);
    return within(entry_text(entry.name), [&]() -> std::optional<Value> {
      if (use_ == DcpUse::whole) return read_torch(stored, verify_);
      CheckpointPart part = read_torch_entry(stored, verify_);
      for (const auto& item : part.left_out)
        part_.left_out.push_back(entry.name + (item.find(": ") == item.npos ? ": " : ".") + item);
      if (part.value.is_null() && !part.left_out.empty()) return std::nullopt;
      return std::move(part.value);
    });
  }

  Value tensor(const DcpEntry& entry) const {
    auto stored = std::make_shared<DcpTensor>(entry.name, *entry.type, verify_);
    for (const auto& chunk : entry.chunks) {
      auto box = archive(entry, chunk.place);
      if (use_ == DcpUse::pieces) box->peek();
      stored->add({chunk.offsets, chunk.shape, std::move(box)});
    }
    if (use_ == DcpUse::parts || use_ == DcpUse::pieces) stored->check();
    return make_stored_tensor(entry.shape, *entry.type, std::move(stored));
  }

  void add_rest() {
    std::error_code error;
    if (!fs::is_regular_file(folder_ / kLightningRest, error) || !part_.value.is_map()) return;
    const auto file = MappedFile::open(folder_ / kLightningRest);
    auto rest =
        use_ == DcpUse::whole ? CheckpointPart{read_torch(file, verify_), {}, {}} : read_torch_part(file, "", verify_);
    if (!rest.value.is_map()) throw CheckpointCorrupt("its file 'meta.pt' holds no dict");
    for (auto& [key, item] : rest.value.as_map())
      if (!part_.value.find(key)) part_.value.as_map().append(key, std::move(item));
    part_.left_out.insert(part_.left_out.end(), rest.left_out.begin(), rest.left_out.end());
  }

  fs::path folder_;
  DcpUse use_;
  bool verify_;
  std::unordered_map<std::string, Archive> files_;
  CheckpointPart part_;
};

}  // namespace

bool looks_like_dcp(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path / kDcpMetadata, error);
}

CheckpointPart open_dcp(const fs::path& folder, DcpUse use, bool verify, std::vector<Archive>* files) {
  return DcpFolder(folder, use, verify).read(files);
}

void for_each_dcp_entry(const fs::path& folder,
                        const std::function<void(const DcpEntry&, const std::vector<Archive>&)>& visit) {
  // What is visited is not read, whatever the use.
  DcpFolder(folder, DcpUse::peek, false).visit(visit);
}

}  // namespace fabric::checkpoint

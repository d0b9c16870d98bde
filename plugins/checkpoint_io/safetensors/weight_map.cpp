// Weights in several files: {"metadata": {"total_size": bytes}, "weight_map": {"name": "file", …}}, as
// https://huggingface.co/docs/safetensors and the transformers library have it; the files are of safetensors or of
// torch.save. `total_size` is not looked at: libraries disagree about what it counts.
//
// Invariant: names of files are names in the index's own folder, whatever the index says.
#include "plugins/checkpoint_io/safetensors/weight_map.h"

#include <algorithm>
#include <map>
#include <unordered_map>

#include <fabric/base/error.h>
#include <fabric/base/log.h>

#include "plugins/checkpoint_io/mapped_file.h"
#include "plugins/checkpoint_io/names.h"
#include "plugins/checkpoint_io/safetensors/safetensors_header.h"

namespace fabric::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr const char* kIndexEnding = ".index.json";
constexpr const char* kOnlyFile = "model.safetensors";

bool is_weight_index(const fs::path& path) {
  std::error_code error;
  return path.filename().string().ends_with(kIndexEnding) && fs::is_regular_file(path, error);
}

/// What the index says, in its order.
struct WeightMap {
  std::vector<std::pair<std::string, std::string>> file_of;
  std::map<std::string, std::vector<std::string>> names_in;
};

WeightMap parse_weight_map(std::string_view text) {
  const Tree root = read_json_of_file(text, "the index");
  const Tree* map = root.find("weight_map");
  if (!map || !map->is_map()) throw CheckpointCorrupt("the index has no map 'weight_map'");
  WeightMap out;
  for (const auto& [name, file] : map->as_map()) {
    const std::string shown = name.substr(0, kShownName);
    if (!file.is_string()) throw CheckpointCorrupt("the index names no file for '" + shown + "'");
    if (!is_plain_name(file.as_string()))
      throw CheckpointCorrupt("the index puts '" + shown + "' into '" + file.as_string().substr(0, kShownName) +
                              "', which is no plain name of a file in its folder");
    out.file_of.emplace_back(name, file.as_string());
    out.names_in[file.as_string()].push_back(name);
  }
  if (out.file_of.empty()) throw CheckpointCorrupt("the index lists no tensor");
  return out;
}

void require_files(const WeightMap& map, const fs::path& folder) {
  NameList missing;
  std::error_code error;
  for (const auto& [file, names] : map.names_in)
    if (!fs::exists(folder / file, error)) missing.add(file);
  if (!missing.empty()) throw CheckpointCorrupt("files that its index names are missing: " + missing.text());
}

// Of a type that LibTorch has no numbers for.
bool is_packed(const Value& item) { return item.find("dtype") && item.find("shape") && item.find("bytes"); }

using Entries = std::unordered_map<std::string, Value>;
void collect(const Value& item, const std::string& name, Entries& into) {
  auto below = [&](const std::string& key) { return name.empty() ? key : name + "." + key; };
  if (item.is<at::Tensor>() || is_packed(item)) {
    into.emplace(name, item);
  } else if (item.is_map()) {
    for (const auto& [key, inner] : item.as_map()) collect(inner, below(key), into);
  } else if (item.is_list()) {
    for (std::size_t i = 0; i < item.as_list().size(); ++i) collect(item.as_list()[i], below(std::to_string(i)), into);
  }
}

class WeightFiles {
 public:
  explicit WeightFiles(const WeightMap& map) : map_(map) {
    for (const auto& [name, file] : map.file_of) listed_.emplace(name, file);
  }

  void add(const std::string& file, const std::vector<std::string>& names, const Value& content) {
    Entries entries;
    collect(content, "", entries);
    NameList missing;
    for (const auto& name : names)
      if (!entries.contains(name)) missing.add(name);
    if (!missing.empty())
      throw CheckpointCorrupt("its file '" + file + "' lacks tensors that the index puts there: " + missing.text());
    for (auto& [name, item] : entries) {
      const auto listed = listed_.find(name);
      if (listed == listed_.end())
        unlisted_.add(name);
      else if (listed->second == file)
        found_.emplace(name, std::move(item));
      else
        throw CheckpointCorrupt("the tensor '" + name.substr(0, kShownName) + "' lies in '" + file +
                                "' as well as in '" + listed->second + "', where the index has it");
    }
  }

  Value take() {
    Value::Map out;
    for (const auto& [name, file] : map_.file_of) out.append(name, std::move(found_.at(name)));
    if (!unlisted_.empty())
      log::rank_zero_warn("tensors that the index does not list are passed over: " + unlisted_.text());
    return out;
  }

 private:
  const WeightMap& map_;
  std::unordered_map<std::string, std::string> listed_;
  Entries found_;
  NameList unlisted_;
};

fs::path folder_of_index(const fs::path& index) {
  return index.has_parent_path() ? index.parent_path() : fs::path(".");
}

WeightMap open_weight_map(const fs::path& index) {
  const auto file = MappedFile::open(index);
  return parse_weight_map(file->text(0, file->size()));
}

}  // namespace

std::optional<fs::path> find_weight_map(const fs::path& path) {
  if (is_weight_index(path)) return path;
  std::error_code error;
  if (!fs::is_directory(path, error)) return std::nullopt;
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(path, error))
    if (is_weight_index(entry.path())) found.push_back(entry.path());
  std::sort(found.begin(), found.end());
  // The one of safetensors, where the same weights lie there twice.
  if (found.size() > 1)
    for (const auto& index : found)
      if (index.filename() == std::string(kOnlyFile) + kIndexEnding) return index;
  if (found.size() > 1)
    throw CheckpointError("the folder '" + path.string() + "' holds several indices; name one of them: '" +
                          found[0].filename().string() + "', '" + found[1].filename().string() + "'");
  if (!found.empty()) return found[0];
  return fs::is_regular_file(path / kOnlyFile, error) ? std::optional(path / kOnlyFile) : std::nullopt;
}

std::vector<fs::path> weight_map_files(const fs::path& index) {
  if (index.filename() == kOnlyFile) return {index};
  const WeightMap map = open_weight_map(index);
  std::vector<fs::path> files;
  for (const auto& [name, names] : map.names_in) files.push_back(folder_of_index(index) / name);
  return files;
}

Value read_weight_map(const fs::path& index, const ReadWeights& read) {
  if (index.filename() == kOnlyFile) return read(index);
  const WeightMap map = open_weight_map(index);
  const fs::path folder = folder_of_index(index);
  require_files(map, folder);
  WeightFiles files(map);
  for (const auto& [name, names] : map.names_in)
    files.add(name, names, within("its file '" + name + "'", [&, &name = name] { return read(folder / name); }));
  return files.take();
}

}  // namespace fabric::checkpoint

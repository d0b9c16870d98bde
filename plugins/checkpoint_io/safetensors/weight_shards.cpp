// Weights in several files and their index (weight_map.cpp reads it). Everything is written in a folder beside the one
// that is wanted, which takes its name in one step.
#include <fabric/plugins/checkpoint_io/weight_shards.h>

#include <unistd.h>

#include <cstdio>
#include <unordered_set>
#include <vector>

#include <fabric/base/atomic_file_internal.h>
#include <fabric/base/error.h>
#include <fabric/base/tree_io.h>

#include "plugins/checkpoint_io/names.h"
#include "plugins/checkpoint_io/safetensors/safetensors.h"

namespace fabric {
namespace {

namespace fs = std::filesystem;
using checkpoint::NamedTensor;

void collect(const Value& item, const std::string& name, std::vector<NamedTensor>& tensors,
             checkpoint::NameList& rest) {
  if (item.is_map()) {
    for (const auto& [key, inner] : item.as_map()) collect(inner, name.empty() ? key : name + "." + key, tensors, rest);
  } else if (!item.is<at::Tensor>() || !item.as<at::Tensor>().defined()) {
    rest.add(name);
  } else {
    at::Tensor tensor = checkpoint::storable(item.as<at::Tensor>(), name);
    if (tensor.is_complex() || !checkpoint::safetensors_name(tensor.scalar_type()))
      throw CheckpointError("the tensor '" + name + "' cannot be saved: its type " +
                            c10::toString(tensor.scalar_type()) + " has no place in the format; convert it first");
    tensors.push_back({name, std::move(tensor)});
  }
}

std::vector<NamedTensor> tensors_of(const Value& weights) {
  std::vector<NamedTensor> tensors;
  checkpoint::NameList rest;
  collect(weights, "", tensors, rest);
  if (!rest.empty())
    throw CheckpointError("weights in several files are tensors alone, and these are none: " + rest.text() +
                          ". Take the part that is wanted (--key)");
  if (tensors.empty()) throw CheckpointError("there is no tensor to write");
  std::unordered_set<std::string> names;
  for (const auto& entry : tensors)
    if (!names.insert(entry.name).second)
      throw CheckpointError("two tensors have the name '" + entry.name + "' once their paths are joined by dots");
  return tensors;
}

std::vector<std::vector<NamedTensor>> split(std::vector<NamedTensor> tensors, std::uint64_t most_bytes) {
  std::vector<std::vector<NamedTensor>> files;
  std::uint64_t bytes = 0;
  for (auto& entry : tensors) {
    const std::uint64_t size = entry.tensor.nbytes();
    if (files.empty() || size > most_bytes || bytes > most_bytes - size) {
      files.emplace_back();
      bytes = 0;
    }
    bytes += size;
    files.back().push_back(std::move(entry));
  }
  return files;
}

std::string file_name(std::size_t number, std::size_t count) {
  char name[80];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", number, count);
  return name;
}

/// A folder beside the one that is wanted, which is removed unless it takes that one's name.
class NewFolder {
 public:
  explicit NewFolder(const fs::path& wanted)
      : wanted_(wanted.has_filename() ? wanted : wanted.parent_path()),
        place_(folder_of(wanted_) / ("." + wanted_.filename().string() + ".partial-" + std::to_string(getpid()))) {
    std::error_code error;
    if (auto why = why_not_local(wanted_); !why.empty()) fail(why);
    if (fs::exists(wanted_, error) && !fs::is_empty(wanted_, error))
      fail(fs::is_directory(wanted_, error) ? "the folder holds something already; name a new one"
                                            : "it is no folder; name a new one");
    if ((error = make_folders(folder_of(wanted_)))) fail(error.message());
    fs::remove_all(place_, error);
    if (!fs::create_directory(place_, error)) fail(error.message());
  }
  ~NewFolder() {
    std::error_code ignored;
    fs::remove_all(place_, ignored);
  }
  const fs::path& place() const { return place_; }
  void take_name() {
    std::error_code error = sync_path(place_);
    if (!error) fs::rename(place_, wanted_, error);
    if (!error) error = sync_path(folder_of(wanted_));
    if (error) fail(error.message());
  }

 private:
  [[noreturn]] void fail(const std::string& why) const {
    throw CheckpointError("cannot write weights to the folder '" + wanted_.string() + "': " + why);
  }
  fs::path wanted_, place_;
};

}  // namespace

std::size_t save_weight_shards(const Value& weights, const fs::path& folder, std::uint64_t most_bytes) {
  auto files = split(tensors_of(weights), most_bytes);
  NewFolder out(folder);
  Tree::Map weight_map;
  std::int64_t total = 0;
  for (std::size_t i = 0; i < files.size(); ++i) {
    const std::string name = file_name(i + 1, files.size());
    for (const auto& entry : files[i]) {
      weight_map.append(entry.name, name);
      total += static_cast<std::int64_t>(entry.tensor.nbytes());
    }
    checkpoint::write_safetensors_file(std::move(files[i]), std::nullopt, out.place() / name);
  }
  const Tree index = Tree::Map{{"metadata", Tree::Map{{"total_size", total}}}, {"weight_map", std::move(weight_map)}};
  write_whole_file(out.place() / "model.safetensors.index.json", write_json(index, /*pretty=*/true) + "\n",
                   as_error<CheckpointError>);
  out.take_name();
  return files.size();
}

}  // namespace fabric

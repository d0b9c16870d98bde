#pragma once

#include <filesystem>
#include <string>

#include <fabric/base/env_reader.h>

namespace fabric {

/// `path` with a leading ~, $NAME and ${NAME} replaced; names that are not set stay as they are.
std::string expanded_path(const std::string& path, const EnvReader& env);

/// The folder of one run, root/name/version. An automatic version is decided at the first question and stays.
class RunFolder {
 public:
  RunFolder(std::string root, std::string name, std::string version);
  const std::string& root() const { return root_; }
  const std::string& name() const { return name_; }
  const std::string& version() const;
  std::filesystem::path path() const;
  /// Makes the folder. An automatic version that nobody asked for yet and that another run takes meanwhile moves on.
  /// Throws Error when it cannot be made.
  void create(const std::string& sub_dir = "");

 private:
  std::filesystem::path parent() const;
  std::string root_;
  std::string name_;
  bool automatic_;
  mutable std::string version_;
};

}  // namespace fabric

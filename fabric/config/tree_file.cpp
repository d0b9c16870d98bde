#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include <fabric/base/error.h>
#include <fabric/base/tree_io.h>

namespace fabric {

Tree read_tree_file(const std::string& path, const ReadLimits& limits, TreeLines* lines) {
  const bool is_json = path.ends_with(".json");
  if (!is_json && !path.ends_with(".yaml") && !path.ends_with(".yml"))
    throw ConfigError("settings file '" + path + "': its name must end in .yaml, .yml or .json");
  std::ifstream file(path, std::ios::binary);
  if (!file) throw ConfigError("settings file '" + path + "' cannot be opened: " + std::strerror(errno));
  std::string text;
  // A folder or a device can be opened, too, and may never end.
  for (char buffer[65536]; file && text.size() <= limits.bytes;) {
    file.read(buffer, sizeof buffer);
    text.append(buffer, static_cast<std::size_t>(file.gcount()));
  }
  if (file.bad() || (text.empty() && !file.eof())) throw ConfigError("settings file '" + path + "' cannot be read");
  return is_json ? read_json(text, path, limits, lines) : read_yaml(text, path, limits, lines);
}

}  // namespace fabric

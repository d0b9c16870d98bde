#pragma once
// What the fuzz targets of checkpoint folders share: a folder that goes with the program, and what a reader may throw.

#include <stdlib.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

#include <fabric/base/error.h>

namespace fuzz {

namespace fs = std::filesystem;

class CheckpointFolder {
 public:
  CheckpointFolder() {
    std::string pattern = (fs::temp_directory_path() / "fabric-fuzz-XXXXXX").string();
    path = mkdtemp(pattern.data()) ? pattern : "";
  }
  ~CheckpointFolder() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
  CheckpointFolder(const CheckpointFolder&) = delete;
  CheckpointFolder& operator=(const CheckpointFolder&) = delete;

  /// A new file, since a reader may still have the one before mapped.
  void put(const char* name, const void* bytes, std::size_t size) const {
    std::error_code ignored;
    fs::remove(path / name, ignored);
    std::ofstream(path / name, std::ios::binary)
        .write(static_cast<const char*>(bytes), static_cast<std::streamsize>(size));
  }
  fs::path path;
};

template <class Load>
void read(Load load) {
  try {
    load();
  } catch (const fabric::CheckpointError&) {  // anything else is a finding
  }
}

}  // namespace fuzz

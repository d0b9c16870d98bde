#pragma once

#include <string>

namespace fabric {

/// Without its end; empty when the file cannot be read.
std::string first_line(const std::string& path);
/// The folder of this program's file.
std::string own_folder();

}  // namespace fabric

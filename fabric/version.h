#pragma once
/// The one place that names the version; CMake, pkg-config and the shared library's name read it from here.
#define FABRIC_VERSION "0.1.0"

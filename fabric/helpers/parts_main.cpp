// fabric-parts: what can be chosen by name, a line each: kind, name and description, with tabs between them. `fabric
// doctor` reads it, since it links no LibTorch itself.
#include <cstdio>
#include <exception>

#include <fabric/helpers/list_parts.h>

int main() {
  try {
    for (const auto& [kind, parts] : fabric::list_parts())
      for (const auto& [name, description] : parts)
        std::printf("%s\t%s\t%s\n", kind.c_str(), name.c_str(), description.c_str());
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "fabric-parts: %s\n", error.what());
    return 1;
  }
}

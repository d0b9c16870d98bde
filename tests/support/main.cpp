// The main of every test program: runs a rank's body when the parent asked for one, Catch2 otherwise.
#if !__has_include(<catch2/catch_all.hpp>)
#define CATCH_CONFIG_RUNNER
#endif
#include <cstdlib>
#include <iostream>

#include "tests/support/rank_server.h"
#include "tests/support/ranks.h"

namespace {

int run_body(const std::string& name) {
  auto body = ranks::bodies().find(name);
  if (body == ranks::bodies().end()) {
    std::cerr << "no body named " << name << std::endl;
    return 99;
  }
  const char* rank = getenv("RANK") ? getenv("RANK") : getenv("OMPI_COMM_WORLD_RANK");
  const char* size = getenv("WORLD_SIZE") ? getenv("WORLD_SIZE") : getenv("OMPI_COMM_WORLD_SIZE");
  try {
    body->second(rank ? atoi(rank) : 0, size ? atoi(size) : 1);
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "rank " << (rank ? rank : "?") << " failed: " << error.what() << std::endl;
    return 1;
  }
}

}  // namespace

int main(int argc, char** argv) {
  ranks::serve_if_asked();
  if (const char* name = getenv("FABRIC_TEST_BODY")) return run_body(name);
  return Catch::Session().run(argc, argv);
}

#include <fabric/base/error.h>
#include <fabric/base/lifecycle.h>

#include "tests/support/captured_log.h"
#include "tests/support/catch.h"

using fabric::detail::removal_version;
using fabric::testing::log_of;

namespace {

FABRIC_DEPRECATED("0.3", "use new_way() instead") int old_way();
int old_way() {
  FABRIC_WARN_DEPRECATED("old_way()", "0.3", "use new_way() instead");
  return 1;
}

// The warning of the compiler is wanted, but not in every build of this test.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
int call_old_way() { return old_way(); }
#pragma GCC diagnostic pop

void new_toy() { FABRIC_WARN_EXPERIMENTAL("new_toy()"); }

}  // namespace

TEST_CASE("What is deprecated is gone in the second minor version after", "[lifecycle]") {
  CHECK(removal_version("0.3") == "0.5");
  CHECK(removal_version("1.9") == "1.11");
  for (const char* none : {"", "3", "0.", ".3", "0.3.1", "0.x", "0.-1", "v0.3"}) {
    INFO(none);
    CHECK_THROWS_AS(removal_version(none), fabric::MisuseError);
  }
}

TEST_CASE("A deprecated function says both versions and what to use, once", "[lifecycle]") {
  CHECK(log_of([] { CHECK(call_old_way() == 1); }) ==
        "[fabric] warning: old_way() is deprecated since TorchFabric 0.3 and will be gone in 0.5: use new_way() "
        "instead\n");
  CHECK(log_of([] { call_old_way(); }).empty());
}

TEST_CASE("What is experimental says so once", "[lifecycle]") {
  CHECK(log_of(new_toy) == "[fabric] warning: new_toy() is experimental: it may change or go in any release\n");
  CHECK(log_of(new_toy).empty());
}

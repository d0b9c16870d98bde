#include "tests/support/sim_device/schema_audit.h"

#include <algorithm>

#include "tests/support/catch.h"
#include "tests/support/sim_device/operator_info.h"

TEST_CASE("what operators write against their schemas is known to the order checker", "[sim][audit]") {
  auto audit = sim::audit_schemas();
  WARN(audit.ran << " of " << audit.operators << " operators were run");
  CHECK(audit.ran > 600);
  std::vector<std::string> known;
  for (const auto& [op, arguments] : sim::unadmitted_writes())
    for (const auto& argument : arguments) known.push_back(op + " " + argument);
  std::sort(known.begin(), known.end());
  for (const auto& found : audit.unadmitted) {
    INFO(found);
    CHECK(std::binary_search(known.begin(), known.end(), found));
  }
  // It finds what is known.
  for (const auto& each : known) {
    INFO(each);
    CHECK(std::binary_search(audit.unadmitted.begin(), audit.unadmitted.end(), each));
  }
}

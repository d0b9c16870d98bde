#include <fabric/base/nearest_name.h>

#include "tests/support/catch.h"

using fabric::did_you_mean;
using fabric::nearest_name;

static const std::vector<std::string> kNames = {"ddp", "dp", "ddp_spawn", "single_device", "fsdp"};

TEST_CASE("the nearest name forgives typing errors, case and hyphens", "[config]") {
  CHECK(nearest_name("dpd", kNames) == "ddp");
  CHECK(nearest_name("DDP", kNames) == "ddp");
  CHECK(nearest_name("ddp-spwan", kNames) == "ddp_spawn");
  CHECK(nearest_name("singel_device", kNames) == "single_device");
  CHECK(nearest_name("single", kNames) == "single_device");
}

TEST_CASE("nothing is near when nothing is", "[config]") {
  CHECK(nearest_name("banana", kNames).empty());
  CHECK(nearest_name("", kNames).empty());
  CHECK(nearest_name("x", {"y"}).empty());
  CHECK(nearest_name("lr", {}).empty());
  CHECK(nearest_name(std::string(100000, 'a'), {std::string(100000, 'b')}).empty());
}

TEST_CASE("an ambiguous beginning names nothing", "[config]") {
  CHECK(nearest_name("optim", {"optimizer_name", "optimizer_config"}).empty());
}

TEST_CASE("did_you_mean always lists what is valid", "[config]") {
  CHECK(did_you_mean("dpd", {"ddp", "fsdp"}) == "; did you mean 'ddp'? Valid: ddp, fsdp");
  CHECK(did_you_mean("banana", {"ddp", "fsdp"}) == "; valid: ddp, fsdp");
  CHECK(did_you_mean("banana", {}) == "; there are none");
}

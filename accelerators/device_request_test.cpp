#include "accelerators/device_request.h"

#include "tests/support/catch.h"

using fabric::ConfigError;
using fabric::DeviceSpec;
namespace {
std::vector<int> parse_cuda_devices(const fabric::DeviceSpec& spec, int present) {
  return fabric::parse_device_indices(spec, present, "GPU");
}
}  // namespace
using Indices = std::vector<int>;

TEST_CASE("CUDA devices: counts, lists and all of them", "[devices]") {
  CHECK(parse_cuda_devices(3, 4) == Indices{0, 1, 2});
  CHECK(parse_cuda_devices("3", 4) == Indices{0, 1, 2});
  CHECK(parse_cuda_devices(4, 4) == Indices{0, 1, 2, 3});
  CHECK(parse_cuda_devices("2,", 4) == Indices{2});
  CHECK(parse_cuda_devices("1, 3", 4) == Indices{1, 3});
  CHECK(parse_cuda_devices("3,1", 4) == Indices{3, 1});
  CHECK(parse_cuda_devices({1, 3}, 4) == Indices{1, 3});
  CHECK(parse_cuda_devices({2}, 4) == Indices{2});
  CHECK(parse_cuda_devices("[0, 2]", 4) == Indices{0, 2});
  CHECK(parse_cuda_devices(-1, 2) == Indices{0, 1});
  CHECK(parse_cuda_devices("-1", 2) == Indices{0, 1});
  CHECK(parse_cuda_devices("auto", 3) == Indices{0, 1, 2});
}

TEST_CASE("CUDA devices: what is refused", "[devices]") {
  for (const char* text : {"0", "-2", "", " ", "[]", ",", "1,1", "0,1,0", "4,", "1,9", "5", "-1,", "0,-1", "two", "1.5",
                           "1,x", "1;2", "true", "99999999999"}) {
    INFO("devices=" << text);
    CHECK_THROWS_AS(parse_cuda_devices(text, 4), ConfigError);
  }
  CHECK_THROWS_AS(parse_cuda_devices(0, 4), ConfigError);
  CHECK_THROWS_AS(parse_cuda_devices(-2, 4), ConfigError);
  CHECK_THROWS_AS(parse_cuda_devices(Indices{}, 4), ConfigError);
  CHECK_THROWS_AS(parse_cuda_devices({1, 1}, 4), ConfigError);
  CHECK_THROWS_WITH(parse_cuda_devices({0, 7}, 4), Catch::Contains("no GPU 7") && Catch::Contains("indices 0 to 3"));
  CHECK_THROWS_WITH(parse_cuda_devices(2, 1), Catch::Contains("only 1 GPU is there"));
  CHECK_THROWS_WITH(parse_cuda_devices("1,1", 4), Catch::Contains("named twice"));
}

TEST_CASE("a device setting survives dump and load", "[devices]") {
  for (const auto& spec : {DeviceSpec(), DeviceSpec(3), DeviceSpec(-1), DeviceSpec("2"), DeviceSpec("1, 3"),
                           DeviceSpec{2}, DeviceSpec{0, 2}, DeviceSpec(Indices{})})
    CHECK(DeviceSpec::from_tree(spec.to_tree()) == spec);
  CHECK(DeviceSpec(3).to_tree().is_int());
  CHECK(DeviceSpec("auto").is_auto());
  CHECK(DeviceSpec{2}.text() == "2,");
}

TEST_CASE("a device setting out of a file: numbers, strings and lists of numbers only", "[devices]") {
  using fabric::Tree;
  CHECK(DeviceSpec::from_tree(Tree(2)) == DeviceSpec(2));
  CHECK(DeviceSpec::from_tree(Tree("0,2")) == (DeviceSpec{0, 2}));
  CHECK(DeviceSpec::from_tree(Tree(Tree::List{0, 2})) == (DeviceSpec{0, 2}));
  CHECK_THROWS_AS(DeviceSpec::from_tree(Tree(true)), ConfigError);
  CHECK_THROWS_AS(DeviceSpec::from_tree(Tree(1.5)), ConfigError);
  CHECK(DeviceSpec::from_tree(Tree()) == DeviceSpec());
  CHECK_THROWS_AS(DeviceSpec::from_tree(Tree(std::int64_t{1} << 40)), ConfigError);
  CHECK_THROWS_AS(DeviceSpec::from_tree(Tree(Tree::List{"0", "1"})), ConfigError);
  CHECK_THROWS_AS(DeviceSpec::from_tree(Tree(Tree::List{true})), ConfigError);
  CHECK_THROWS_AS(DeviceSpec::from_tree(Tree(Tree::Map{{"count", 2}})), ConfigError);
}
